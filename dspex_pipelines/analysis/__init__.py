"""Counts, means, intervals and pictures of outcomes. No gRPC, no Dagster."""

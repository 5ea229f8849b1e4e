"""Runs trials: executor, runner, dispatcher, journal, programs. Asyncio at most; no gRPC, no Dagster."""

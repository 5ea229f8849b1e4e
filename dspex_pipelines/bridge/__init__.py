"""The pool process: sessions and dispatcher behind gRPC, its client, and the local pool around it."""

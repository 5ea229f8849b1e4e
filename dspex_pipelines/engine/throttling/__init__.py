"""When a call to a model may go, for all workers of a pool: rates, windows, breakers. No I/O and no clock."""

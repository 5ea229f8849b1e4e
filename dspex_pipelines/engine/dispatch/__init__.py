"""Which trial runs where, and what becomes of it: events in, orders out, no I/O and no clock."""

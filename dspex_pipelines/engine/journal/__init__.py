"""The durable record of every outcome, and what is read from it: a budget's account, what may be deleted."""

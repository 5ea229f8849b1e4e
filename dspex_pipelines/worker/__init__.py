"""A process that attaches to the bridge and runs programs."""

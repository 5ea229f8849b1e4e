"""A declared data set: its sources, rows and partitions, and the asset that keeps it."""

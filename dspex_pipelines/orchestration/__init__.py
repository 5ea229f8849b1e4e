"""Everything that knows Dagster: assets, ops, resources, IO managers, and `build_evaluation`."""

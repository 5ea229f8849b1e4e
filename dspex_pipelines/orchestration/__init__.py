"""Everything that knows Dagster: assets, ops, resources, IO managers, and `build_evaluation`."""

import warnings

# Beta in the Dagster in use and tested with it; who evaluates a program can do nothing about them.
warnings.filterwarnings(
    "ignore", message=r"Parameter `(backfill_policy|data_version|use_user_code_server)` of .* is currently in beta"
)
warnings.filterwarnings(
    "ignore", message=r"Class `(LocalFileCodeReference|CodeReferencesMetadataValue)` is currently in beta"
)

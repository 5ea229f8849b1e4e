"""The run tags of evaluations: what the instance's run queue limits by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

KIND = "dspex/kind"
EVALUATION = "dspex/evaluation"
TARGET = "dspex/target"
RESULTS = "evaluation"
"""Last part of the key of an evaluation's results asset."""
PARTIAL = "partial"
"""Name of the metadata that says which trials a run did not get to, and why; complete results have none."""
SOURCE = "source digest"
"""Name of the metadata that says which content of its files a data set was read from."""
RETRIES = {"dagster/max_retries": "2", "dagster/retry_strategy": "ALL_STEPS"}
"""Tags of a run that Dagster is to start again, as a whole: what is done is not done again."""
OFF = "STOPPED"
"""Status of every schedule and sensor until somebody turns it on: nothing runs because a project was loaded."""
POOL = "dspex_run_trials"
"""The Dagster pool that bounds `run_trials` steps over all runs."""


def run_tags(asset_paths: Iterable[Sequence[str]], partition: str) -> dict[str, str]:
    """Return the tags of a run over these assets; none when it evaluates nothing.

    ``dspex/target`` names evaluation and partition: at most one run works on each at a time.
    """
    names = sorted({path[0] for path in asset_paths if len(path) > 1 and path[-1] == RESULTS})
    if not names:
        return {}
    evaluation = names[0] if len(names) == 1 else "several"
    return {
        KIND: "evaluation",
        EVALUATION: evaluation,
        TARGET: f"{evaluation}/{partition}" if partition else evaluation,
    }

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

"""How steps fail: those that would fail again are not started once more by themselves, and nor is their run."""

from __future__ import annotations

import dagster as dg

from dspex_pipelines.errors import (
    DspexError,
    EvaluationIncomplete,
    Interrupted,
    JournalError,
    PoolUnreachable,
    QuotaExceeded,
)

NOT_AGAIN = {"dagster/retry_on_asset_or_op_failure": "false"}
"""Tag of a run that Dagster does not start again for a step that has failed."""
_PASSING = (PoolUnreachable, JournalError, EvaluationIncomplete, QuotaExceeded, Interrupted)
"""What may be over by the next try; anything else somebody has to remove first, such as a refused key."""


def step_failure(instance: dg.DagsterInstance, run_id: str, error: DspexError) -> dg.Failure:
    """Return the failure of a step for *error*, which says what to do."""
    if isinstance(error, PoolUnreachable):
        return dg.Failure(f"{error}. Outcomes so far are kept; run again to go on.")
    if isinstance(error, _PASSING):
        return dg.Failure(str(error))
    stay_failed(instance, run_id)
    return dg.Failure(str(error), allow_retries=False)


def stay_failed(instance: dg.DagsterInstance, run_id: str) -> None:
    """Have Dagster not start the run again by itself, should one of its steps fail; people still can."""
    instance.add_run_tags(run_id, NOT_AGAIN)

"""Which failed runs Dagster starts again by itself: those that may end otherwise, and no others."""

from __future__ import annotations

from dataclasses import replace

import dagster as dg
import pytest
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run

from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.model.checks import ScoreFloor
from dspex_pipelines.orchestration import resources
from dspex_pipelines.orchestration.resources import WorkerPoolResource
from dspex_pipelines.orchestration.tags import RETRIES
from tests.orchestration.conftest import Lab, failure
from tests.orchestration.declared import declare


def is_started_again(lab: Lab, result: dg.ExecuteInProcessResult) -> bool:
    """Whether Dagster's daemon would, by its own function."""
    run = lab.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.is_failure
    return auto_reexecution_should_retry_run(lab.instance, run, RunFailureReason.STEP_FAILURE)


def test_an_unreachable_pool_may_be_there_by_then(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = WorkerPoolResource(address="unix:/nowhere/at/all", connect_timeout_s=0.2)
    lab.declare(declare("Fallible", name="again"), worker_pool=nowhere)
    dialled = 0

    class Counted(PoolClient):
        async def __aenter__(self) -> PoolClient:
            nonlocal dialled
            dialled += 1
            return await super().__aenter__()

    monkeypatch.setattr(resources, "PoolClient", Counted)
    result = lab.evaluate(tags=RETRIES, trials_per_op=10)
    assert "Outcomes so far are kept" in failure(result)
    assert is_started_again(lab, result)
    failed = [event.step_key for event in result.all_events if event.is_step_failure]
    assert (len(failed), dialled) == (4, 1), "of the steps only the first waits for it"


def test_what_is_declared_wrongly_is_no_better_then(lab: Lab) -> None:
    lab.declare(replace(declare("Fallible", name="again"), program="tests.orchestration.nowhere:Nothing"))
    result = lab.evaluate(tags=RETRIES)
    assert "tests.orchestration.nowhere" in failure(result)
    assert not is_started_again(lab, result)


@pytest.mark.parametrize("blocking", [False, True])
def test_the_same_results_are_judged_in_the_same_way(lab: Lab, *, blocking: bool) -> None:
    floor = ScoreFloor(metric="right", at_least=0.9, blocking=blocking)
    lab.declare(declare("Fallible", name="again", init={"wrong": 3}, checks=(floor,)))
    result = lab.run([lab.dataset_key, lab.results_key, lab.board_key], tags=RETRIES)
    assert result.success is not blocking
    if blocking:
        assert not is_started_again(lab, result)

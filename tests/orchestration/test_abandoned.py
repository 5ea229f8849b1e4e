"""A run whose process was killed stands in nobody's way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from dspex_pipelines.orchestration.abandoned import PROCESS, end_abandoned_runs, process_tags
from dspex_pipelines.orchestration.tags import POOL
from dspex_pipelines.wire.processes import started_at

STEP = "e__evaluation.run_trials[batch_000000]"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    settings = {"concurrency": {"pools": {"default_limit": 1, "granularity": "op"}}}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=settings) as opened:
        yield opened


def started(instance: dg.DagsterInstance, tags: dict[str, str]) -> str:
    """A run that goes on and holds a slot of the pool."""

    @dg.job
    def some_job() -> None: ...

    run = instance.create_run_for_job(some_job, status=dg.DagsterRunStatus.STARTED, tags=tags)
    instance.event_log_storage.set_concurrency_slots(POOL, 1)
    instance.event_log_storage.claim_concurrency_slot(POOL, run.run_id, STEP)
    return run.run_id


def tags_of(process: subprocess.Popen[bytes]) -> dict[str, str]:
    host = process_tags()[PROCESS].split()[0]
    return {PROCESS: f"{host} {process.pid} {started_at(process.pid)}"}


def test_a_run_whose_process_was_killed_has_failed_and_holds_no_slot(instance: dg.DagsterInstance) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        run_id = started(instance, tags_of(process))
        assert end_abandoned_runs(instance) == 0, "it lives"
        process.kill()
    assert end_abandoned_runs(instance) == 1
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert instance.event_log_storage.claim_concurrency_slot(POOL, "another", STEP).is_claimed
    assert end_abandoned_runs(instance) == 0


@pytest.mark.parametrize("process", ["", "elsewhere 1 1", "nonsense"])
def test_other_runs_are_left_alone(instance: dg.DagsterInstance, process: str) -> None:
    run_id = started(instance, {PROCESS: process} if process else {})
    assert end_abandoned_runs(instance) == 0
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.STARTED
    assert not instance.event_log_storage.claim_concurrency_slot(POOL, "another", STEP).is_claimed

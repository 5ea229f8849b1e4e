"""A pool of steps over real processes: its limit holds, and whoever waits is let in once there is room."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance import InstanceRef
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from dspex_pipelines.cli.starter import write_starter
from dspex_pipelines.orchestration.step_pools import claim_in_turn
from dspex_pipelines.orchestration.tags import POOL
from tests.orchestration.test_abandoned import tags_of

PROCESSES, ROUNDS, STEP = 4, 60, "run_trials"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    pools = "concurrency: {pools: {granularity: op, default_limit: 1}}"
    (tmp_path / "dagster.yaml").write_text(pools)
    with dg.DagsterInstance.from_config(str(tmp_path)) as opened:
        yield opened


def storage_of(instance: dg.DagsterInstance) -> SqlEventLogStorage:
    assert isinstance(instance.event_log_storage, SqlEventLogStorage)
    return instance.event_log_storage


def _claim(ref: InstanceRef, number: int, start: Barrier, claimed: multiprocessing.SimpleQueue[int]) -> None:
    with dg.DagsterInstance.from_ref(ref) as opened:
        claim_in_turn(opened)
        for pool in range(ROUNDS):
            start.wait(100)
            opened.event_log_storage.initialize_concurrency_limit_to_default(f"pool{pool}")
            if opened.event_log_storage.claim_concurrency_slot(f"pool{pool}", f"run{number}", STEP).is_claimed:
                claimed.put(pool)
    claimed.put(-1)


def test_of_processes_that_claim_at_once_one_gets_the_place(instance: dg.DagsterInstance) -> None:
    """Without a lock about a fifth of the places are taken twice."""
    context = multiprocessing.get_context("spawn")
    start, claimed = context.Barrier(PROCESSES), context.SimpleQueue()
    of = [
        context.Process(target=_claim, args=(instance.get_ref(), number, start, claimed)) for number in range(PROCESSES)
    ]
    for process in of:
        process.start()
    pools: list[int] = []
    while pools.count(-1) < PROCESSES:
        pools.append(claimed.get())
    for process in of:
        process.join()
    assert sorted(pool for pool in pools if pool >= 0) == list(range(ROUNDS))


def test_a_step_that_asks_while_the_last_place_is_given_back_gets_it(instance: dg.DagsterInstance) -> None:
    """What Dagster does of both steps is done in the order in which it leaves the second one waiting for ever."""
    storage = storage_of(instance)
    storage.initialize_concurrency_limit_to_default("pool")
    assert storage.claim_concurrency_slot("pool", "first", STEP).is_claimed
    has_room = storage.has_unassigned_slots("pool")
    storage.free_concurrency_slot_for_step("first", STEP)
    storage.add_pending_step("pool", "second", STEP, should_assign=has_room)
    assert not storage.claim_concurrency_slot("pool", "second", STEP).is_claimed
    claim_in_turn(instance)
    assert storage.claim_concurrency_slot("pool", "second", STEP).is_claimed
    assert not storage.claim_concurrency_slot("pool", "third", STEP).is_claimed
    storage.free_concurrency_slot_for_step("second", STEP)
    assert storage.claim_concurrency_slot("pool", "third", STEP).is_claimed


def test_a_place_is_claimed_where_no_lock_can_be_written(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    (tmp_path / "dspex_claims.lock").mkdir()
    storage = storage_of(instance)
    storage.initialize_concurrency_limit_to_default("pool")
    claim_in_turn(instance)
    assert storage.claim_concurrency_slot("pool", "first", STEP).is_claimed
    assert not storage.claim_concurrency_slot("pool", "second", STEP).is_claimed


def test_who_was_killed_while_it_was_next_keeps_nobody_waiting(instance: dg.DagsterInstance) -> None:
    told: list[str] = []
    claim_in_turn(instance, lambda why, _: told.append(why))
    storage = storage_of(instance)
    storage.initialize_concurrency_limit_to_default("pool")

    @dg.job
    def some_job() -> None: ...

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        run = instance.create_run_for_job(some_job, status=dg.DagsterRunStatus.STARTED, tags=tags_of(process))
        assert storage.claim_concurrency_slot("pool", "first", STEP).is_claimed
        assert not storage.claim_concurrency_slot("pool", run.run_id, STEP).is_claimed
        process.kill()
    storage.free_concurrency_slot_for_step("first", STEP)
    waiting = iter(range(100))
    while not storage.claim_concurrency_slot("pool", "later", STEP).is_claimed:
        time.sleep(0.1)
        next(waiting)
    assert set(told) == {"other runs have all places of the Dagster pool pool"}


def test_an_instance_is_prepared_once(instance: dg.DagsterInstance) -> None:
    claim_in_turn(instance)
    prepared = storage_of(instance).claim_concurrency_slot
    claim_in_turn(instance)
    assert storage_of(instance).claim_concurrency_slot is prepared


def test_the_command_says_that_it_waits_for_other_runs_and_goes_on(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    write_starter(tmp_path / "project")
    storage = storage_of(instance)
    storage.initialize_concurrency_limit_to_default(POOL)
    assert storage.claim_concurrency_slot(POOL, "other", STEP).is_claimed
    command = [str(Path(sys.executable).with_name("dspex")), "evaluate", "--workers", "1"]
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=tmp_path / "project", env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        storage.free_concurrency_slot_for_step("other", STEP)
        rest = process.stdout.read()
    assert said.startswith(f"all: waiting: other runs have all places of the Dagster pool {POOL} (for ")
    assert process.returncode == 0, rest
    assert "Results: " in rest

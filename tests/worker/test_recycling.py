"""Workers that leak, or have run enough, are replaced while the evaluation goes on; no trial notices."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.recycling import Recycling
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.model.outcome import TrialOutcome, TrialResult
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, TrialSpec
from tests.worker.conftest import program

ROOT = Path(__file__).parents[2]
Leasing = Callable[..., AbstractContextManager[local_pool.LocalPoolLease]]


@pytest.fixture
def leasing() -> Iterator[Leasing]:
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))

    @contextmanager
    def lease(*, workers: int, **limits: int) -> Iterator[local_pool.LocalPoolLease]:
        with local_pool.lease(
            workers=workers, slots=8, idle_s=0.5, recycling=Recycling(**limits), cwd=ROOT, runtime_root=folder
        ) as held:
            yield held

    yield lease
    local_pool.stop(runtime_root=folder)
    shutil.rmtree(folder)


def trials(name: str, count: int, **inputs: object) -> list[TrialSpec]:
    of = program(name)
    return [
        TrialSpec(
            program=of, example=Example(example_id=str(x), inputs={"x": x, **inputs}), configuration=Configuration({})
        )
        for x in range(count)
    ]


async def run(client: PoolClient, some: list[TrialSpec]) -> list[TrialOutcome]:
    runner = TrialRunner(client, metrics=[], space_json="", timeout_s=0)
    outcomes = await asyncio.gather(*(runner.run(spec) for spec in some))
    client.commit(len(outcomes))
    return list(outcomes)


async def test_a_leaking_program_finishes_in_workers_of_bounded_size(leasing: Leasing) -> None:
    limit_mb, leak_kb, count = 200, 256, 2_000
    with leasing(workers=2, max_rss_mb=limit_mb) as lease:
        async with PoolClient(lease.address, connect_timeout_s=30) as client:
            outcomes = await run(client, trials("leaks", count, kib=leak_kb))
            status = await client.status()
        log = (lease.runtime_dir / "pool.log").read_text()
    assert {type(outcome) for outcome in outcomes} == {TrialResult}
    assert [outcome.outputs["x"] for outcome in outcomes] == list(range(count))
    assert {outcome.attempts for outcome in outcomes} == {1}
    assert status.workers_lost == 0
    workers = {outcome.worker for outcome in outcomes}
    largest = max(outcome.outputs["rss_mb"] for outcome in outcomes)
    assert count * leak_kb / 1024 / len(workers) < limit_mb, "each has leaked less than the limit"
    assert limit_mb < largest < 1.5 * limit_mb
    assert "takes no more trials: it holds" in log


async def test_a_trial_that_never_ends_keeps_no_worker_from_being_replaced(leasing: Leasing, tmp_path: Path) -> None:
    """Three workers in a row that cannot leave, in a pool of one."""
    with leasing(workers=1, max_trials=50) as lease:
        async with PoolClient(lease.address, connect_timeout_s=30) as client:
            runner = TrialRunner(client, metrics=[], space_json="", timeout_s=0)
            pipe = tmp_path / "never"
            (tmp_path / "started").mkdir()
            held: list[asyncio.Task[TrialOutcome]] = []
            for round_ in range(3):
                started = tmp_path / "started" / str(round_)
                (spec,) = trials("waits_long", 1, started=str(started), opened=str(pipe))
                held.append(asyncio.create_task(runner.run(spec)))
                while not started.exists():
                    await asyncio.sleep(0.01)
                outcomes = await run(client, trials("pid", 60))
                assert {(type(outcome), outcome.attempts) for outcome in outcomes} == {(TrialResult, 1)}
            pids = [int((tmp_path / "started" / str(number)).read_text()) for number in range(3)]
            assert len(set(pids)) == 3
            assert all(map(psutil.pid_exists, pids)), "they run on"
            assert not any(task.done() for task in held)
            pipe.touch()
            ends = await asyncio.wait_for(asyncio.gather(*held), 30)
            client.commit(len(ends))
            assert {(type(outcome), outcome.attempts) for outcome in ends} == {(TrialResult, 1)}
            while any(map(psutil.pid_exists, pids)):
                await asyncio.sleep(0.05)
            assert (await client.status()).workers_lost == 0

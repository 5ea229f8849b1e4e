"""What a pool survives: hanging trials, deadly trials, dead workers, a dead bridge. Everything here is real."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.program_versions import program_version
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.errors import PoolFailed
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, Isolation, ProgramSpec, TrialSpec
from tests.bridge.conftest import ROOT
from tests.bridge.fatal_programs import HANGS

SLOTS = 64
NEIGHBOURS = 500
TIMEOUT_S = 2.0
ENDED_S = TIMEOUT_S + 1
"""From the moment a trial begins to hang, so long at most until its outcome is here."""
ENDED_ALONE_S = 2 * TIMEOUT_S + 3
"""Of one that holds the interpreter, so that it takes another run, alone, to know that it was this one."""


@pytest.fixture
def pool() -> Iterator[local_pool.LocalPoolLease]:
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    with local_pool.lease(workers=2, slots=SLOTS, idle_s=0.5, cwd=ROOT, runtime_root=folder) as lease:
        yield lease
    local_pool.stop(runtime_root=folder)
    shutil.rmtree(folder)


def specs(name: str, count: int, *, isolation: Isolation = "shared", **inputs: object) -> list[TrialSpec]:
    entry_point = f"tests.bridge.fatal_programs:{name}"
    program = ProgramSpec(entry_point=entry_point, version=program_version(entry_point, {}), isolation=isolation)
    return [
        TrialSpec(
            program=program,
            example=Example(example_id=str(x), inputs={"x": x, **inputs}),
            configuration=Configuration({}),
        )
        for x in range(count)
    ]


async def run(
    lease: local_pool.LocalPoolLease,
    trials: list[TrialSpec],
    timeout_s: float = 0,
    ended: dict[bytes, float] | None = None,
) -> list[TrialOutcome]:
    """Return the outcomes; *ended* is told when each of them was here."""
    async with PoolClient(lease.address, connect_timeout_s=30) as client:
        runner = TrialRunner(client, metrics=[], space_json="", timeout_s=timeout_s)

        async def one(spec: TrialSpec) -> TrialOutcome:
            outcome = await runner.run(spec)
            if ended is not None:
                ended[spec.trial_id] = time.monotonic()
            return outcome

        outcomes = await asyncio.gather(*(one(spec) for spec in trials))
        client.commit(len(outcomes))
    return list(outcomes)


def starts_of(spec: TrialSpec) -> list[float]:
    """When each run of it began to hang."""
    return [float(line) for line in Path(spec.example.inputs["began"]).read_text().split()]


def children(lease: local_pool.LocalPoolLease, module: str) -> list[psutil.Process]:
    (status,) = local_pool.status(runtime_root=lease.runtime_dir.parent)
    return [child for child in psutil.Process(status.pid).children() if module in command_of(child)]


def command_of(process: psutil.Process) -> list[str]:
    """Its command line; none of one that has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is none either
        return process.cmdline()
    return []


@pytest.mark.parametrize(
    "name",
    [
        "sleeps",
        "sleeps_later",
        "spins",
        "spins_later",
        "holds_computing",
        "holds_later",
        "holds_waiting",
    ],
)
async def test_a_trial_that_hangs_is_settled_and_its_neighbours_succeed(
    pool: local_pool.LocalPoolLease, name: str, tmp_path: Path
) -> None:
    bad, ended = NEIGHBOURS // 3, dict[bytes, float]()
    trials = specs(name, NEIGHBOURS + 1, bad=bad, began=str(tmp_path / "began"))
    outcomes = await run(pool, trials, timeout_s=TIMEOUT_S, ended=ended)
    hung = outcomes.pop(bad)
    assert isinstance(hung, TrialError), hung
    assert (hung.type, f"{TIMEOUT_S:g} s" in hung.message) == (ErrorType.TIMEOUT_RUN, True)
    starts = starts_of(trials[bad])
    alone = name.startswith("holds")
    assert len(starts) == 1 + alone
    assert ended[trials[bad].trial_id] - starts[0] <= (ENDED_ALONE_S if alone else ENDED_S)
    assert [type(outcome) for outcome in outcomes] == [TrialResult] * NEIGHBOURS, Counter(
        outcome.message for outcome in outcomes if isinstance(outcome, TrialError)
    )
    again = await run(pool, specs(name, NEIGHBOURS, bad=-1, began=""), timeout_s=TIMEOUT_S)
    assert {type(outcome) for outcome in again} == {TrialResult}, "later trials find fresh slots"


async def test_isolated_trials_that_hang_are_settled_and_500_neighbours_succeed(
    pool: local_pool.LocalPoolLease, tmp_path: Path
) -> None:
    (workers,) = [{worker.pid for worker in children(pool, "dspex_pipelines.worker")}]
    trials = specs("hangs_somehow", NEIGHBOURS, isolation="process", how="", began="")

    def alone(name: str, **inputs: object) -> TrialSpec:
        began = str(tmp_path / "-".join((name, *map(str, inputs.values()))))
        (spec,) = specs(name, 1, isolation="process", began=began, **inputs)
        return spec

    bad = [alone("hangs_somehow", how=how) for how in HANGS]
    bad += [alone("sleeps_later", bad=0), alone("spins_later", bad=0)]
    trials[100:100] = bad
    ended: dict[bytes, float] = {}
    outcomes = await run(pool, trials, timeout_s=TIMEOUT_S, ended=ended)
    for spec, hung in zip(bad, outcomes[100 : 100 + len(bad)], strict=True):
        assert isinstance(hung, TrialError), spec
        assert (hung.type, hung.attempts) == (ErrorType.TIMEOUT_RUN, 1)
        (start,) = starts_of(spec)
        assert ended[spec.trial_id] - start <= ENDED_S
    del outcomes[100 : 100 + len(bad)]
    assert [type(outcome) for outcome in outcomes] == [TrialResult] * NEIGHBOURS, Counter(
        outcome.message for outcome in outcomes if isinstance(outcome, TrialError)
    )
    assert {outcome.attempts for outcome in outcomes} == {1}
    assert {worker.pid for worker in children(pool, "dspex_pipelines.worker")} == workers, "none was lost or replaced"


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("kills", "its process was killed by signal 11 (SIGSEGV)"),
        ("exits", "its process ended with exit code 3"),
        ("is_killed", "its process was killed by signal 9 (SIGKILL; out of memory?)"),
    ],
)
async def test_a_trial_that_kills_its_worker_is_poison_and_its_neighbours_succeed(
    pool: local_pool.LocalPoolLease, name: str, how: str
) -> None:
    bad = 77
    outcomes = await run(pool, specs(name, NEIGHBOURS, bad=bad))
    poison = outcomes.pop(bad)
    assert isinstance(poison, TrialError)
    assert poison.type is ErrorType.POISON
    assert poison.message == f"2 processes died while they ran it alone; the last: {how}"
    assert {(past.type, past.message) for past in poison.history} == {(ErrorType.WORKER_LOST, how)}
    assert {type(outcome) for outcome in outcomes} == {TrialResult}
    rerun = [outcome for outcome in outcomes if outcome.history]
    assert 1 <= len(rerun) <= SLOTS
    assert {(past.type, past.message) for outcome in rerun for past in outcome.history} == {
        (ErrorType.WORKER_LOST, how)
    }


async def test_the_bridge_is_killed_and_the_runner_goes_on(pool: local_pool.LocalPoolLease, tmp_path: Path) -> None:

    def writers() -> list[str]:
        """The tasks that send for a stream; one that is left says so on standard error when the loop ends."""
        names = [str(getattr(task.get_coro(), "__qualname__", "")) for task in asyncio.all_tasks()]
        return [name for name in names if name.endswith("._consume_request_iterator")]

    calls = tmp_path / "calls"
    trials = specs("healthy", 600, calls=str(calls))
    async with PoolClient(pool.address, connect_timeout_s=30) as client:
        runner = TrialRunner(client, metrics=[], space_json="", timeout_s=0)
        room = asyncio.Semaphore(50)
        done = 0

        async def one(spec: TrialSpec) -> TrialOutcome:
            nonlocal done
            async with room:
                outcome = await runner.run(spec)
                client.commit(1)
            done += 1
            if done in (100, 300):
                (bridge,) = children(pool, "dspex_pipelines.bridge")
                bridge.kill()
            return outcome

        outcomes = await asyncio.gather(*(one(spec) for spec in trials))
        assert not [outcome for outcome in outcomes if isinstance(outcome, TrialError)]
        assert [outcome.outputs for outcome in outcomes] == list(range(600))
        assert client._window.limit == client._window.credit
        assert len(writers()) == 1, "those of the bridges before have ended"
    assert not writers()
    runs = Counter(calls.read_text().split())
    assert set(runs) == {str(x) for x in range(600)}
    assert sum(runs.values()) <= 600 + 2 * 50, "only what was in flight ran twice"


async def test_killed_workers_cost_nobody_anything(pool: local_pool.LocalPoolLease, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    trials = specs("healthy", 400, calls=str(calls))
    running = asyncio.create_task(run(pool, trials))
    for least in (40, 120, 200):
        while not calls.exists() or calls.read_text().count("\n") < least:
            await asyncio.sleep(0.01)
        for worker in children(pool, "dspex_pipelines.worker"):
            if "--quarantine" not in worker.cmdline():
                worker.kill()
    outcomes = await running
    assert [outcome.outputs for outcome in outcomes] == list(range(400))


async def test_a_pool_whose_workers_only_die_gives_up_with_the_reason(pool: local_pool.LocalPoolLease) -> None:
    async with PoolClient(pool.address, connect_timeout_s=30) as client:
        runner = TrialRunner(client, metrics=[], space_json="", timeout_s=0)
        await asyncio.gather(*(runner.run(spec) for spec in specs("always_kills", 40)))
        lost = runner.pool_lost
    assert isinstance(lost, PoolFailed)
    assert "died without answering a trial" in str(lost)
    assert "pool.log" in str(lost)
    assert "ended with -9" in str(lost)

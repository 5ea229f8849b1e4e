"""Calls to models in a real pool, when something goes wrong with who makes them: no place in a lane is lost."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from dspex_pipelines.bridge import local_pool, model_calls
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.pool_status import ModelStatus
from dspex_pipelines.engine.program_versions import program_version
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.limits import RateLimit
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, Isolation, ProgramSpec, TrialSpec
from tests.bridge.conftest import ROOT
from tests.providers.field import field

ENOUGH = 600
"""Calls after which both workers need not ask any more."""
PATIENCE_S = 30
SLOTS = 64

UNUSED = ModelStatus(
    model="",
    state="open",
    waiting=0,
    in_flight=0,
    granted=0,
    refused=0,
    failed=0,
    window=None,
    per_s=None,
    paused_for_s=0.0,
)

_numbers = itertools.count()


@pytest.fixture(scope="module")
def pool() -> Iterator[local_pool.LocalPoolLease]:
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    with local_pool.lease(workers=2, slots=SLOTS, idle_s=0.5, cwd=ROOT, runtime_root=folder) as lease:
        yield lease
    local_pool.stop(runtime_root=folder)
    shutil.rmtree(folder)


@pytest.fixture
async def client(pool: local_pool.LocalPoolLease) -> AsyncIterator[PoolClient]:
    async with PoolClient(pool.address, connect_timeout_s=30) as opened:
        yield opened


@pytest.fixture
def model() -> str:
    """A lane of its own."""
    return f"sim/{next(_numbers)}"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[IO[str]]:
    with (tmp_path / "gate").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield held


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    (tmp_path / "calls").touch()
    return tmp_path / "calls"


def specs(name: str, count: int, *, isolation: Isolation = "shared", **inputs: object) -> list[TrialSpec]:
    entry_point = f"tests.bridge.calling_programs:{name}"
    program = ProgramSpec(entry_point=entry_point, version=program_version(entry_point, {}), isolation=isolation)
    return [
        TrialSpec(
            program=program,
            example=Example(example_id=str(x), inputs={"x": x, **inputs}),
            configuration=Configuration({}),
        )
        for x in range(count)
    ]


def start(
    client: PoolClient, trials: list[TrialSpec], *limits: RateLimit, timeout_s: float = 0
) -> list[asyncio.Task[TrialOutcome]]:
    policy = CallPolicy(limits=limits)
    runner = TrialRunner(client, metrics=[], space_json="", timeout_s=timeout_s, calls=policy)
    return [asyncio.create_task(runner.run(spec)) for spec in trials]


async def all_of(running: list[asyncio.Task[TrialOutcome]]) -> list[TrialOutcome]:
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.gather(*running)


async def lane(client: PoolClient, model: str) -> ModelStatus:
    found = [one for one in (await client.status()).models if one.model == model]
    return found[0] if found else UNUSED


async def until(client: PoolClient, model: str, true: Callable[[ModelStatus], bool]) -> ModelStatus:
    """Return the lane once that is true of it."""
    async with asyncio.timeout(PATIENCE_S):
        while not true(status := await lane(client, model)):
            await asyncio.sleep(0.02)
    return status


def at_rest(status: ModelStatus) -> bool:
    return not (status.waiting or status.in_flight)


def open_(gate: IO[str]) -> None:
    fcntl.flock(gate, fcntl.LOCK_UN)


def who_called(calls: Path) -> list[tuple[int, int]]:
    """Return trials and processes, in the order of their calls."""
    return [(int(x), int(pid)) for x, pid in map(str.split, calls.read_text().splitlines())]


async def called(calls: Path, count: int) -> list[tuple[int, int]]:
    async with asyncio.timeout(PATIENCE_S):
        while len(made := who_called(calls)) < count:
            await asyncio.sleep(0.02)
    return made


KINDS = [
    pytest.param("later", "shared", id="on-the-loop"),
    pytest.param("in_thread", "shared", id="in-a-thread"),
    pytest.param("in_thread", "process", id="in-a-process"),
]


async def test_a_worker_is_killed_while_its_calls_go_unasked(
    client: PoolClient, model: str, gate: IO[str], calls: Path
) -> None:
    asks = {"model": model, "calls": str(calls)}
    await all_of(start(client, specs("later", ENOUGH, gate="", **asks)))
    before = len(who_called(calls))
    running = start(client, specs("later", SLOTS, gate=gate.name, **asks))
    made = (await called(calls, before + SLOTS))[before:]
    await until(client, model, lambda status: status.in_flight == SLOTS)
    pids = [pid for _, pid in made]
    killed = max(set(pids), key=pids.count)
    os.kill(killed, signal.SIGKILL)
    again = (await called(calls, before + SLOTS + pids.count(killed)))[before + SLOTS :]
    assert {x for x, _ in again} == {x for x, pid in made if pid == killed}
    await until(client, model, lambda status: status.in_flight == SLOTS)
    open_(gate)
    assert [outcome.outputs for outcome in await all_of(running)] == list(range(SLOTS))
    await until(client, model, at_rest)


@pytest.mark.parametrize(("name", "isolation"), KINDS)
async def test_a_client_that_goes_leaves_no_call_waiting(
    pool: local_pool.LocalPoolLease,
    client: PoolClient,
    model: str,
    gate: IO[str],
    calls: Path,
    name: str,
    isolation: Isolation,
) -> None:
    limit = RateLimit(model=model, max_concurrency=1)
    asks = {"model": model, "gate": gate.name, "calls": str(calls)}
    (mine,) = start(client, specs(name, 1, isolation=isolation, **asks), limit)
    await called(calls, 1)
    async with PoolClient(pool.address, connect_timeout_s=30) as other:
        theirs = start(other, specs(name, 10, isolation=isolation, **asks), limit)
        await until(client, model, lambda status: status.waiting == 10)
    await asyncio.gather(*theirs, return_exceptions=True)
    await until(client, model, lambda status: (status.waiting, status.in_flight) == (0, 1))
    mine_too = start(client, specs(name, 3, isolation=isolation, **asks), limit)
    await until(client, model, lambda status: status.waiting == 3)
    open_(gate)
    assert all(isinstance(outcome, TrialResult) for outcome in await all_of([mine, *mine_too]))
    assert len(who_called(calls)) == 4
    await until(client, model, at_rest)


async def test_a_trial_that_nobody_waits_for_any_more_calls_no_model(
    client: PoolClient, pool: local_pool.LocalPoolLease, model: str, gate: IO[str], calls: Path
) -> None:
    limit = RateLimit(model=model, max_concurrency=1)
    asks = {"model": model, "gate": gate.name, "calls": str(calls)}
    (mine,) = start(client, specs("in_thread", 1, **asks), limit)
    await called(calls, 1)
    async with PoolClient(pool.address, connect_timeout_s=30) as other:
        theirs = start(other, specs("obstinate", 5, **asks), limit)
        await until(client, model, lambda status: status.waiting == 5)
    await asyncio.gather(*theirs, return_exceptions=True)
    await until(client, model, lambda status: status.waiting == 0)
    open_(gate)
    await all_of([mine])
    await all_of(start(client, specs("in_thread", 1, **asks), limit))
    assert len(who_called(calls)) == 2


@pytest.mark.parametrize("calling", [True, False])
async def test_a_trials_own_process_is_killed(
    client: PoolClient, model: str, gate: IO[str], calls: Path, calling: bool
) -> None:
    """While it calls, or while it waits for leave."""
    limit = RateLimit(model=model, max_concurrency=1)
    asks = {"model": model, "gate": gate.name, "calls": str(calls)}
    (first,) = start(client, specs("says_who", 1, isolation="process", **asks), limit)
    await called(calls, 1)
    (second,) = start(client, specs("says_who", 1, isolation="process", **asks), limit)
    await until(client, model, lambda status: status.waiting == 1)
    (_, caller), (_, waiter) = who_called(Path(f"{calls}-to-come"))
    os.kill(caller if calling else waiter, signal.SIGKILL)
    # The other one has the place at once, or the one that is run again stands in line for it.
    if calling:
        await called(calls, 2)
    open_(gate)
    assert all(isinstance(outcome, TrialResult) for outcome in await all_of([first, second]))
    await until(client, model, at_rest)


@pytest.mark.parametrize(("name", "isolation"), KINDS)
async def test_time_in_line_is_no_trials_own(
    client: PoolClient, model: str, gate: IO[str], calls: Path, name: str, isolation: Isolation
) -> None:
    limit = RateLimit(model=model, max_concurrency=1)
    asks = {"model": model, "calls": str(calls)}
    (holds,) = start(client, specs(name, 1, isolation=isolation, gate=gate.name, **asks), limit)
    await called(calls, 1)
    waiting = start(client, specs(name, 3, isolation=isolation, gate="", **asks), limit, timeout_s=3)
    await until(client, model, lambda status: status.waiting == 3)
    # A trial that has as much time, and uses it, is out of it by now.
    (out_of_time,) = await all_of(
        start(client, specs("later", 1, model=f"{model}/free", gate=gate.name, calls=str(calls)), timeout_s=3)
    )
    assert isinstance(out_of_time, TrialError)
    assert out_of_time.type is ErrorType.TIMEOUT_RUN
    assert (await lane(client, model)).waiting == 3
    open_(gate)
    assert all(isinstance(outcome, TrialResult) for outcome in await all_of([holds, *waiting]))
    await until(client, model, at_rest)


async def test_a_call_that_never_ends_does_not_have_its_place_for_ever(
    model: str, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_calls, "STUCK_S", 0.1)
    limit = RateLimit(model=model, max_concurrency=1)
    asks = {"model": model, "gate": "", "calls": str(calls)}
    first, *others = specs("hangs", 4, **asks)
    async with field(workers=1) as alone, PoolClient(alone.bridge.address) as client:
        (hung,) = start(client, [first], limit, timeout_s=1)
        await called(calls, 1)
        running = start(client, others, limit)
        await until(client, model, lambda status: status.waiting == 3)
        (outcome,) = await all_of([hung])
        assert isinstance(outcome, TrialError)
        assert outcome.type is ErrorType.TIMEOUT_RUN
        assert all(isinstance(outcome, TrialResult) for outcome in await all_of(running))
        await until(client, model, at_rest)


@pytest.mark.parametrize("isolation", ["shared", "process"])
@pytest.mark.parametrize("name", ["strange_in_thread", "strange_later"])
async def test_what_providers_should_not_say_costs_no_answer(
    client: PoolClient, name: str, isolation: Isolation
) -> None:
    lost = (await client.status()).workers_lost
    (outcome,) = await all_of(start(client, specs(name, 1, isolation=isolation)))
    assert isinstance(outcome, TrialResult), outcome.message
    assert (outcome.outputs, outcome.attempts) == (0, 1)
    assert outcome.usage["pages"] == 2**63 - 1
    assert outcome.trace_payload
    status = await client.status()
    assert status.workers_lost == lost
    assert all(at_rest(model) for model in status.models if "strange" in model.model or "refusing" in model.model)

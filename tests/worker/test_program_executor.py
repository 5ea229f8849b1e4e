"""Every shape of program: where it runs, what it is given, whom it is shared with."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from dspex_pipelines import redaction
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialResult
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.worker import instances, program_executor
from tests.worker import programs
from tests.worker.conftest import Bench, program, spec


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


def open_gate(pipe: str) -> None:
    """Let everything go that waits for the pipe; blocks until somebody does."""
    os.close(os.open(pipe, os.O_WRONLY))


async def test_an_async_program_runs_on_the_program_loop_and_a_sync_one_in_a_thread(bench: Bench) -> None:
    here = threading.current_thread().name
    on_loop = await bench.run("async_function", values={"k": 3})
    in_thread = await bench.run("sync_function", values={"k": 3})
    assert isinstance(on_loop, TrialResult)
    assert on_loop.outputs == {"x": 2, "k": 3, "thread": here}
    assert isinstance(in_thread, TrialResult)
    assert in_thread.outputs["thread"] != here
    assert {**in_thread.outputs, "thread": here} == on_loop.outputs


async def test_trials_wait_side_by_side(bench: Bench, pipe: str) -> None:
    """Four in threads and four on the loop, all held; one more of each ends before any of them."""
    held = []
    for name in ("waits_politely", "waits"):
        inputs = {"x": 1, "opened": pipe, **({"started": f"{pipe}-started"} if name == "waits" else {})}
        session = bench.open(program(name))
        held += [bench.submit(spec(program(name), inputs, {}), session=session) for _ in range(4)]
    for name in ("sync_function", "async_function"):
        assert isinstance(await bench.run(name, values={"k": 1}), TrialResult)
    assert not set(held) & set(bench.delivered)
    assert bench.executor.running == len(held)
    await asyncio.to_thread(open_gate, pipe)
    assert [type(await bench.outcome(number)) for number in held] == [TrialResult] * 8


async def test_a_program_that_asks_for_the_seed_gets_the_trials(bench: Bench) -> None:
    outcome = await bench.run("seeded")
    assert isinstance(outcome, TrialResult)
    assert outcome.outputs == [2, 11]


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        pytest.param("Shared", True, id="variables-of-the-call"),
        pytest.param("Constructed", False, id="variables-of-the-constructor"),
        pytest.param("Configured", False, id="variables-of-configure"),
    ],
)
async def test_an_instance_is_shared_by_all_configurations_or_belongs_to_one(
    bench: Bench, name: str, shared: bool
) -> None:
    of = program(name, offset=100)
    session = bench.open(of)
    seen: dict[int, set[int]] = {}
    for version, k in enumerate((1, 2, 3), start=1):
        for x in (10, 20):
            trial = spec(of, {"x": x}, {"k": k})
            outcome = await bench.outcome(bench.submit(trial, session=session, version=version))
            assert isinstance(outcome, TrialResult), outcome
            assert outcome.outputs["sum"] == x + k + 100
            assert outcome.configuration_digest == trial.configuration.digest
            seen.setdefault(k, set()).add(outcome.outputs["instance"])
    assert [len(instances) for instances in seen.values()] == [1, 1, 1]
    assert len(set.union(*seen.values())) == (1 if shared else 3)


async def test_one_configuration_in_two_sessions_has_one_instance(bench: Bench) -> None:
    results = [await bench.run(program("Constructed", offset=7), values={"k": 5}) for _ in range(2)]
    assert results[0].outputs == results[1].outputs


@pytest.mark.parametrize("name", ["async_function", "sync_function", "Shared"])
async def test_another_configuration_begins_at_once_where_nothing_has_to_be_built(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """However many configurations there are: handing one to a thread costs more than a trial that does nothing."""
    of = program(name, **({"offset": 1} if name == "Shared" else {}))
    session = bench.open(of)
    await bench.outcome(bench.submit(spec(of, {"x": 1}, {"k": 1}), session=session))
    prepared: list[object] = []
    monkeypatch.setattr(bench.executor, "_prepare", lambda *given: prepared.append(given) or asyncio.Future())
    numbers = [bench.submit(spec(of, {"x": 1}, {"k": k}), session=session, version=k) for k in range(2, 100)]
    outcomes = [await bench.outcome(number) for number in numbers]
    assert [outcome.configuration_digest for outcome in outcomes] == [
        Configuration({"k": k}).digest for k in range(2, 100)
    ]
    assert all(isinstance(outcome, TrialResult) for outcome in outcomes)
    assert prepared == []
    assert len(bench.executor._ready) <= program_executor.MOST_READY


@pytest.mark.parametrize(
    ("before", "look_s"),
    [pytest.param("", 3_600.0, id="a-variable-more"), pytest.param("another-key", 0.0, id="another-value")],
)
async def test_a_key_that_a_trial_reads_into_the_environment_is_a_secret_of_the_next_configuration(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, before: str, look_s: float
) -> None:
    monkeypatch.setattr(redaction, "_SECRETS", redaction.Secrets())
    monkeypatch.setattr(program_executor, "LOOK_S", look_s)
    monkeypatch.setenv("LEARNT_API_KEY", before)
    if not before:
        monkeypatch.delenv("LEARNT_API_KEY")
    of = program("learns_a_key")
    session = bench.open(of)
    said = []
    for k in (1, 2, 3):
        trial = spec(of, {"x": "sesame-open-now"}, {"k": k})
        outcome = await bench.outcome(bench.submit(trial, session=session, version=k))
        assert isinstance(outcome, TrialResult)
        said.append(outcome.outputs)
    assert said == ["1: sesame-open-now", "2: sesame-open-now", "3: [redacted LEARNT_API_KEY]"]


async def test_instances_are_bounded_and_built_again_when_needed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.Constructed, "built", [])
    most = instances.MOST_INSTANCES
    of = program("Constructed", offset=1)
    session = bench.open(of)

    async def run(k: int) -> None:
        trial = spec(of, {"x": 0}, {"k": k})
        outcome = await bench.outcome(bench.submit(trial, session=session, version=k + 1))
        assert isinstance(outcome, TrialResult)
        assert outcome.outputs["sum"] == k + 1

    for k in range(most):
        await run(k)
    await run(0)
    assert programs.Constructed.built == list(range(most))
    for k in range(most, most + 10):
        await run(k)
    assert len(bench.executor._instances._built) == most
    assert len(bench.executor._ready) <= most
    # The first was used again and stays; the second was the one used least.
    await run(0)
    await run(1)
    assert programs.Constructed.built == [*range(most + 10), 1]


async def test_trials_that_ask_at_once_build_one_instance(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.Constructed, "built", [])
    of = program("Constructed", offset=2)
    sessions = [bench.open(of) for _ in range(3)]
    numbers = [bench.submit(spec(of, {"x": x}, {"k": 1}), session=sessions[x % 3]) for x in range(30)]
    outcomes = [await bench.outcome(number) for number in numbers]
    assert len({outcome.outputs["instance"] for outcome in outcomes}) == 1
    assert programs.Constructed.built == [1]


async def test_a_trial_runs_under_the_version_it_names_and_no_other(bench: Bench) -> None:
    of = program("async_function")
    session = bench.open(of)
    trials = [spec(of, {"x": 0}, {"k": k}) for k in (1, 2, 3)]
    first = [bench.submit(trial, session=session, version=v) for v, trial in enumerate(trials, 1)]
    again = [bench.submit(trials[v - 1], session=session, version=v) for v in (1, 3, 2)]
    assert [(await bench.outcome(number)).outputs["k"] for number in first + again] == [1, 2, 3, 1, 3, 2]
    # A version never changes: what comes later under its number is not taken.
    late = bench.submit(spec(of, {"x": 0}, {"k": 9}), session=session, version=1)
    assert (await bench.outcome(late)).outputs["k"] == 1


async def test_a_session_that_was_closed_is_stale(bench: Bench) -> None:
    of = program("async_function")
    session = bench.open(of)
    bench.executor.context.close(session)
    outcome = await bench.outcome(bench.submit(spec(of, {"x": 0}, {"k": 1}), session=session))
    assert isinstance(outcome, TrialError)
    assert (outcome.type, outcome.retryable) == (ErrorType.STALE_STATE, True)


async def test_a_cancelled_coroutine_frees_its_slot_and_delivers_nothing(bench: Bench, pipe: str) -> None:
    of = program("waits_politely")
    session = bench.open(of)
    number = bench.submit(spec(of, {"x": 1, "opened": pipe}, {}), session=session)
    assert isinstance(await bench.run("seeded"), TrialResult)
    bench.executor.cancel(number)
    assert await bench.released.get() == number
    assert number not in bench.delivered
    assert bench.executor.running == 0
    await asyncio.to_thread(open_gate, pipe)


async def test_a_cancelled_thread_keeps_its_slot_until_it_ends(bench: Bench, pipe: str, tmp_path: Path) -> None:
    of = program("waits")
    started = tmp_path / "started"
    session = bench.open(of)
    inputs = {"x": 1, "started": str(started), "opened": pipe}
    number = bench.submit(spec(of, inputs, {}), session=session)
    while not started.exists():
        await asyncio.sleep(0)
    bench.executor.cancel(number)
    assert isinstance(await bench.run("sync_function", values={"k": 1}), TrialResult)
    assert bench.released.empty()
    assert bench.executor.running == 1
    await asyncio.to_thread(open_gate, pipe)
    assert await bench.released.get() == number
    assert number not in bench.delivered


async def test_a_trial_for_which_there_is_no_thread_is_given_back(bench: Bench, pipe: str, tmp_path: Path) -> None:
    of = program("waits")
    session = bench.open(of)

    def submit(name: str) -> int:
        inputs = {"x": 1, "started": str(tmp_path / name), "opened": pipe}
        return bench.submit(spec(of, inputs, {}), session=session)

    programs.gate(pipe)  # its thread too could not be started below
    held = [submit("first")]
    while not (tmp_path / "first").exists():
        await asyncio.sleep(0)
    # No stack is to be had of that size, as none is where there are no more threads.
    before = threading.stack_size(1 << 46)
    try:
        # The thread that got it ready may be idle.
        held += [submit(str(number)) for number in range(4)]
    finally:
        threading.stack_size(before)
    await asyncio.sleep(0)
    lost = [number for number in held if bench._outcomes[number].done()]
    assert len(lost) >= 3
    for number in lost:
        outcome = await bench.outcome(number)
        assert isinstance(outcome, TrialError)
        assert (outcome.type, outcome.retryable) == (ErrorType.WORKER_LOST, True)
        assert "no thread could be started" in outcome.message
    await asyncio.to_thread(open_gate, pipe)
    assert {type(await bench.outcome(number)) for number in held if number not in lost} == {TrialResult}
    assert bench.executor.running == 0


async def test_a_cancel_that_comes_too_late_only_frees_the_slot(bench: Bench) -> None:
    outcome = bench.run("async_function", values={"k": 1})
    assert isinstance(await outcome, TrialResult)
    bench.executor.cancel(bench.delivered[0])
    assert await bench.released.get() == bench.delivered[0]


async def test_an_example_that_cannot_be_read_fails_alone(bench: Bench) -> None:
    """Another language's client may send anything."""
    from dspex.v1 import types_pb2
    from dspex_pipelines.model.payload import encode

    of = program("seeded")
    session = bench.open(of)
    fine = bench.submit(spec(of, {"x": 1}, {}), session=session)
    unreadable = [b"\xc1", encode({"x": 1}), encode(["id", None, {}, "", {}]), encode(["", {}, {}, "", {}])]
    for number, example in enumerate(unreadable, start=100):
        bench._outcomes[number] = asyncio.get_running_loop().create_future()
        bench.executor.submit(types_pb2.Trial(id=number, session_id=session, version=1, example=example))
        outcome = await bench.outcome(number)
        assert isinstance(outcome, TrialError)
        assert outcome.type is ErrorType.SERIALIZATION
    assert isinstance(await bench.outcome(fine), TrialResult)

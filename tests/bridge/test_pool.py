"""Trials through a real pool: each under exactly its configuration, each failure an outcome of its own."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.errors import (
    InvalidValue,
    PoolUnreachable,
    ProtocolMismatch,
    UnknownSession,
    VersionConflict,
)
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec, TrialSpec
from dspex_pipelines.model.variables import Integer
from dspex_pipelines.wire import codec

SPACE = ConfigurationSpace(variables=(Integer(name="k", low=0, high=1_000),))


def program(name: str) -> ProgramSpec:
    entry_point = f"tests.programs:{name}"
    return ProgramSpec(entry_point=entry_point, version=program_version(entry_point, {}))


def metric(name: str) -> MetricSpec:
    entry_point = f"tests.programs:{name}"
    return MetricSpec(entry_point=entry_point, version=metric_version(entry_point))


async def run(
    client: PoolClient,
    specs: list[TrialSpec],
    *,
    judge: str = "any_output",
    space: ConfigurationSpace = SPACE,
    timeout_s: float = 60,
) -> list[TrialOutcome]:
    runner = TrialRunner(client, metrics=[metric(judge)], space_json=space.to_json(), timeout_s=timeout_s)
    outcomes = await asyncio.gather(*map(runner.run, specs))
    client.commit(len(outcomes))
    return outcomes


def spec(name: str, x: int, **values: object) -> TrialSpec:
    return TrialSpec(
        program=program(name),
        example=Example(example_id=str(x), inputs={"x": x}),
        configuration=Configuration(values),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", ["echo", "in_thread", "Configured"])
async def test_no_trial_runs_under_anothers_configuration(client: PoolClient, name: str) -> None:
    """1,500 trials of 60 configurations in three sessions, whose variables change all the while."""
    rng = random.Random(7)
    configurations = [Configuration({"k": k}) for k in range(60)]
    specs = [
        TrialSpec(
            program=program(name),
            example=Example(example_id=str(x), inputs={"x": x}),
            configuration=rng.choice(configurations),
        )
        for x in range(1_500)
    ]
    runners = [
        TrialRunner(client, metrics=[metric("any_output")], space_json=SPACE.to_json(), timeout_s=60) for _ in range(3)
    ]
    sessions = [await client.open_session(program(name), [metric("any_output")], SPACE.to_json()) for _ in range(3)]
    done = asyncio.Event()

    async def disturb() -> None:
        while not done.is_set():
            for session in sessions:
                await client.set_variables(session, {"k": rng.randrange(1_000)})

    async def mixed(number: int, trial: TrialSpec) -> TrialOutcome:
        if number % 2:
            return await runners[number % 3].run(trial)
        session = sessions[number % 3]
        snapshot = await client.set_variables(session, trial.configuration.values)
        return await client.execute(trial, session_id=session, version=snapshot.version, timeout_s=60)

    disturbing = asyncio.create_task(disturb())
    outcomes = await asyncio.gather(*(mixed(number, trial) for number, trial in enumerate(specs)))
    done.set()
    await disturbing
    client.commit(len(outcomes))
    instances: dict[object, object] = {}
    for trial, outcome in zip(specs, outcomes, strict=True):
        assert isinstance(outcome, TrialResult), outcome
        assert outcome.configuration_digest == trial.configuration.digest
        assert outcome.outputs["k"] == trial.configuration.values["k"]
        assert outcome.outputs["x"] == trial.example.inputs["x"]
        if name == "Configured":
            assert outcome.outputs["seen"] == [trial.configuration.values["k"]]
            owner = instances.setdefault((outcome.worker, outcome.outputs["instance"]), outcome.outputs["k"])
            assert owner == outcome.outputs["k"]


@pytest.mark.parametrize(
    ("name", "judge", "kind", "says"),
    [
        ("fifth_raises", "correct", ErrorType.PROGRAM_EXCEPTION, "example 0 is not liked"),
        ("exits", "correct", ErrorType.PROGRAM_EXCEPTION, "SystemExit"),
        ("unserialisable", "any_output", ErrorType.SERIALIZATION, "outputs['x']"),
        ("hangs", "correct", ErrorType.TIMEOUT_RUN, "0.5 s"),
        ("sleeps", "correct", ErrorType.TIMEOUT_RUN, "0.5 s"),
    ],
)
async def test_a_failure_is_an_outcome_of_its_own_type(
    client: PoolClient, name: str, judge: str, kind: ErrorType, says: str
) -> None:
    space = ConfigurationSpace()
    (outcome,) = await run(client, [spec(name, 0)], judge=judge, space=space, timeout_s=0.5)
    assert isinstance(outcome, TrialError)
    assert outcome.type is kind
    assert says in outcome.message


async def test_a_number_that_the_wire_has_no_room_for_is_its_callers_alone(client: PoolClient) -> None:
    session = await client.open_session(program("echo"), [metric("any_output")], SPACE.to_json())
    snapshot = await client.set_variables(session, {"k": 1})

    async def execute(version: int) -> TrialOutcome:
        return await client.execute(spec("echo", 1, k=1), session_id=session, version=version, timeout_s=60)

    bad, good = await asyncio.gather(execute(-1), execute(snapshot.version), return_exceptions=True)
    assert isinstance(bad, ValueError)
    assert isinstance(good, TrialResult)
    client.commit(2)


async def test_a_fifth_raises_and_only_those_fail(client: PoolClient) -> None:
    specs = [spec("fifth_raises", x) for x in range(200)]
    outcomes = await run(client, specs, judge="correct", space=ConfigurationSpace())
    for x, outcome in enumerate(outcomes):
        if x % 5:
            assert isinstance(outcome, TrialResult)
            assert outcome.scores == {"correct": True}
        else:
            assert isinstance(outcome, TrialError)
            assert "tests/programs.py" in outcome.traceback
            assert f"example {x} is not liked" in outcome.traceback
    fingerprints = {outcome.fingerprint for outcome in outcomes if isinstance(outcome, TrialError)}
    assert len(fingerprints) == 1


@pytest.mark.parametrize("judge", ["broken_metric", "not_a_number"])
async def test_a_failing_metric_keeps_the_outputs(client: PoolClient, judge: str) -> None:
    (outcome,) = await run(client, [spec("fifth_raises", 3)], judge=judge, space=ConfigurationSpace())
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.METRIC_EXCEPTION
    assert outcome.outputs == 3


async def test_a_killed_worker_costs_nobody_a_trial(client: PoolClient, tmp_path: Path) -> None:
    before = (await client.status()).workers_lost
    marker = str(tmp_path / "marker")
    specs = [
        TrialSpec(
            program=program("kills_once"),
            example=Example(example_id=str(x), inputs={"x": x, "marker": marker}),
            configuration=Configuration({}),
        )
        for x in range(300)
    ]
    outcomes = await run(client, specs, judge="correct", space=ConfigurationSpace())
    assert [type(outcome) for outcome in outcomes] == [TrialResult] * 300
    assert outcomes[0].attempts == 2
    assert (await client.status()).workers_lost == before + 1


async def test_sessions_are_versioned_atomic_and_checked(client: PoolClient) -> None:
    session = await client.open_session(program("echo"), [metric("any_output")], SPACE.to_json())
    first = await client.set_variables(session, {"k": 1})
    assert first.digest == Configuration({"k": 1}).digest
    assert (await client.set_variables(session, {"k": 1})).version == first.version
    second = await client.set_variables(session, {"k": 2}, expected_version=first.version)
    with pytest.raises(VersionConflict):
        await client.set_variables(session, {"k": 3}, expected_version=first.version)
    with pytest.raises(InvalidValue, match="k"):
        await client.set_variables(session, {"k": 2_000})
    snapshot, values = await client.get_session(session)
    assert (snapshot.version, values) == (second.version, {"k": 2})
    assert (await client.get_session(session, first.version))[1] == {"k": 1}
    await client.close_session(session)
    with pytest.raises(UnknownSession):
        await client.set_variables(session, {"k": 1})


async def test_a_version_nobody_made_is_stale(client: PoolClient) -> None:
    session = await client.open_session(program("echo"), [metric("any_output")], SPACE.to_json())
    outcome = await client.execute(spec("echo", 1, k=1), session_id=session, version=9, timeout_s=1)
    client.commit(1)
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.STALE_STATE


async def test_an_answer_under_another_configuration_is_refused(client: PoolClient) -> None:
    """The runner compares what the worker says it saw: take the comparison out and this goes red."""

    class Confused:
        open_session = client.open_session
        execute = client.execute

        async def set_variables(self, session_id: int, values: object, **options: object) -> object:
            return await client.set_variables(session_id, {"k": 999})

    runner = TrialRunner(
        Confused(),
        metrics=[metric("any_output")],
        space_json=SPACE.to_json(),
        timeout_s=5,  # type: ignore[arg-type]
    )
    outcome = await runner.run(spec("echo", 1, k=1))
    client.commit(1)
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.STALE_STATE


async def test_an_edited_program_does_not_answer_for_its_old_version(client: PoolClient) -> None:
    old = TrialSpec(
        program=ProgramSpec(entry_point="tests.programs:echo", version="0" * 32),
        example=Example(example_id="1", inputs={"x": 1}),
        configuration=Configuration({"k": 1}),
    )
    (outcome,) = await run(client, [old])
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.PROGRAM_UNAVAILABLE


async def test_another_protocol_version_is_refused_by_name(pool_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspex_pipelines.bridge.client.PROTOCOL_VERSION", codec.PROTOCOL_VERSION + 1)
    with pytest.raises(ProtocolMismatch, match="same dspex-pipelines version"):
        async with PoolClient(pool_address):
            pass


async def test_an_address_where_nobody_answers_is_named(tmp_path: Path) -> None:
    with pytest.raises(PoolUnreachable, match="nobody.sock"):
        async with PoolClient(f"unix:{tmp_path}/nobody.sock", connect_timeout_s=0.2):
            pass

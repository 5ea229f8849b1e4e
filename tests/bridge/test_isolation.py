"""No trial runs under another's configuration, and no instance is seen by two, whatever happens at the same time."""

from __future__ import annotations

import asyncio
import fcntl
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient, SnapshotRef
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec, TrialSpec
from dspex_pipelines.model.variables import Integer
from tests.bridge.conftest import ROOT

NAMES = ("a", "b", "c")
SPACE = ConfigurationSpace(variables=tuple(Integer(name=name, low=0, high=1_000) for name in NAMES))
METRIC = MetricSpec(entry_point="tests.bridge.programs:one", version=metric_version("tests.bridge.programs:one"))
SLOTS = 600
HELD = 1_100
"""Trials that run at the same moment, in two workers' slots."""
LATER = 400
"""Trials sent while those answer."""
CONFIGURATIONS = 80
"""More than a worker keeps instances of."""


@pytest.fixture(scope="module")
def roomy_address(runtime_root: Path) -> Iterator[str]:
    with local_pool.lease(workers=2, slots=SLOTS, idle_s=1, cwd=ROOT, runtime_root=runtime_root) as lease:
        yield lease.address


@pytest.fixture
async def roomy(roomy_address: str) -> AsyncIterator[PoolClient]:
    async with PoolClient(roomy_address, connect_timeout_s=30) as opened:
        yield opened


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[IO[str]]:
    with (tmp_path / "gate").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield held


def program(name: str) -> ProgramSpec:
    entry_point = f"tests.bridge.programs:{name}"
    return ProgramSpec(entry_point=entry_point, version=program_version(entry_point, {}))


def trial(of: ProgramSpec, x: int, gate: str, configuration: Configuration) -> TrialSpec:
    inputs = {"x": x, "gate": gate, "called_under": list(configuration.values.values())}
    return TrialSpec(program=of, example=Example(example_id=str(x), inputs=inputs), configuration=configuration)


class Schedule:
    """Random trials under random configurations, in sessions that never rest."""

    def __init__(self, client: PoolClient, name: str, gate: Path, seed: int) -> None:
        self.client = client
        self.program = program(name)
        self.gate = str(gate)
        self.random = random.Random(seed)
        self.configurations = [Configuration(self.values()) for _ in range(CONFIGURATIONS)]
        self.runners = [
            TrialRunner(client, metrics=[METRIC], space_json=SPACE.to_json(), timeout_s=60) for _ in range(2)
        ]
        self.sessions: list[int] = []
        self.answers: list[tuple[TrialSpec, TrialOutcome]] = []

    def values(self) -> dict[str, int]:
        return {name: self.random.randint(0, 1_000) for name in NAMES}

    async def open(self) -> None:
        for _ in range(3):
            session = await self.client.open_session(self.program, [METRIC], SPACE.to_json())
            await self.client.set_variables(session, self.values())
            self.sessions.append(session)

    async def change(self) -> tuple[int, SnapshotRef, Mapping[str, int]]:
        """Change a session: all of its variables to a configuration that others use too, or one or two of them."""
        session = self.random.choice(self.sessions)
        wanted: Mapping[str, int] = self.random.choice(self.configurations).values  # type: ignore[assignment]
        replace = self.random.random() < 0.7
        if not replace:
            wanted = {name: wanted[name] for name in self.random.sample(NAMES, self.random.randint(1, 2))}
        return session, await self.client.set_variables(session, wanted, replace=replace), wanted

    async def run(self, x: int) -> None:
        if self.random.random() < 0.5:
            spec = trial(self.program, x, self.gate, self.random.choice(self.configurations))
            self.answers.append((spec, await self.random.choice(self.runners).run(spec)))
            return
        session, snapshot, wanted = await self.change()
        found, values = await self.client.get_session(session, snapshot.version)
        assert found == snapshot
        assert {name: values[name] for name in wanted} == wanted
        spec = trial(self.program, x, self.gate, Configuration(values))
        outcome = await self.client.execute(spec, session_id=session, version=snapshot.version, timeout_s=60)
        self.answers.append((spec, outcome))

    async def disturb(self) -> None:
        while True:
            await self.change()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ["in_loop", "in_thread", "Remembering"])
async def test_each_of_a_thousand_trials_at_once_sees_its_own_configuration(
    roomy: PoolClient, gate: IO[str], name: str, seed: int
) -> None:
    schedule = Schedule(roomy, name, Path(gate.name), seed)
    await schedule.open()
    disturbing = [asyncio.create_task(schedule.disturb()) for _ in range(4)]
    async with asyncio.TaskGroup() as trials:
        for x in range(HELD):
            trials.create_task(schedule.run(x))
        while (await roomy.status()).in_flight < HELD:
            assert not schedule.answers, "the gate is shut, so this one failed"
            await schedule.change()
        for x in range(HELD, HELD + LATER):
            trials.create_task(schedule.run(x))
        fcntl.flock(gate, fcntl.LOCK_UN)
    for task in disturbing:
        task.cancel()
    await asyncio.wait(disturbing)
    assert [task.cancelled() for task in disturbing] == [True] * 4
    roomy.commit(len(schedule.answers))

    assert sorted(spec.example.inputs["x"] for spec, _ in schedule.answers) == list(range(HELD + LATER))
    assert len({spec.configuration for spec, _ in schedule.answers}) >= CONFIGURATIONS
    owners: dict[tuple[str, int], list[int]] = {}
    for spec, outcome in schedule.answers:
        assert isinstance(outcome, TrialResult), outcome
        assert outcome.configuration_digest == spec.configuration.digest
        own = list(spec.configuration.values.values())
        assert outcome.outputs["x"] == spec.example.inputs["x"]
        assert outcome.outputs["values"] == own
        if name == "Remembering":
            assert outcome.outputs["seen"] == [own]
            assert owners.setdefault((outcome.worker, outcome.outputs["instance"]), own) == own


class LyingPool:
    """Answers every trial as if it had run under *seen*."""

    def __init__(self, outcome: type[TrialOutcome], seen: bytes) -> None:
        self.outcome = outcome
        self.seen = seen

    async def open_session(self, program: ProgramSpec, metrics: object, space_json: str, calls: object) -> int:
        return 1

    async def set_variables(self, session_id: int, values: Mapping[str, object], **options: object) -> SnapshotRef:
        return SnapshotRef(version=1, digest=Configuration(values).digest)  # type: ignore[arg-type]

    async def make_versions(self, session_id: int, many: Sequence[object]) -> list[int]:
        return [1] * len(many)

    def answer(self, spec: TrialSpec) -> TrialOutcome:
        told = {"trial_id": spec.trial_id, "configuration_digest": self.seen, "worker": "w", "attempts": 2}
        if self.outcome is TrialResult:
            return TrialResult(**told, outputs_payload=b"\x01")
        return TrialError(**told, type=ErrorType.PROGRAM_EXCEPTION, message="it raised")

    async def execute(self, spec: TrialSpec, **options: object) -> TrialOutcome:
        return self.answer(spec)

    def send(self, spec: TrialSpec, *given: Any) -> int:
        *_, answered, about = given
        answered(about, self.answer(spec))
        return 1

    def drop(self, answered: object) -> None:
        raise AssertionError("nothing is in flight")


OWN = Configuration({"a": 1, "b": 2, "c": 3})
OTHER = Configuration({"a": 1, "b": 2, "c": 4})


@pytest.mark.parametrize(
    ("outcome", "seen", "stale"),
    [
        pytest.param(TrialResult, OWN.digest, False, id="a-result-of-its-own"),
        pytest.param(TrialResult, OTHER.digest, True, id="a-result-of-another"),
        pytest.param(TrialResult, b"", True, id="a-result-of-none"),
        pytest.param(TrialError, OWN.digest, False, id="an-error-of-its-own"),
        pytest.param(TrialError, OTHER.digest, True, id="an-error-of-another"),
        pytest.param(TrialError, b"", False, id="an-error-that-no-worker-saw"),
    ],
)
async def test_what_ran_under_another_configuration_is_stale(
    outcome: type[TrialOutcome], seen: bytes, stale: bool
) -> None:
    runner = TrialRunner(LyingPool(outcome, seen), metrics=[], space_json="", timeout_s=1)
    spec = trial(program("in_loop"), 1, "", OWN)
    answers = [await runner.run(spec)]
    # What is applied by now needs no coroutine.
    assert runner.begin(spec, b"", 0, lambda _, answer: answers.append(answer), pytest.fail)
    assert len(answers) == 2
    for answer in answers:
        if not stale:
            assert isinstance(answer, outcome)
            assert getattr(answer, "type", None) is not ErrorType.STALE_STATE
            continue
        assert (answer.configuration_digest, answer.worker, answer.attempts) == (seen, "w", 2)
        assert answer.outputs == (1 if outcome is TrialResult else None)
        assert isinstance(answer, TrialError)
        assert answer.type is ErrorType.STALE_STATE
        assert answer.retryable
        assert OWN.digest.hex()[:12] in answer.message

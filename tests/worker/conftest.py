"""A `ProgramExecutor` in the test's own process, and projects that can be edited."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dspex.v1 import types_pb2
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.model.outcome import TrialOutcome
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, Isolation, MetricSpec, ProgramSpec, TrialSpec
from dspex_pipelines.wire.codec import metric_to_wire, outcome_from_wire, program_to_wire, trial_to_wire
from dspex_pipelines.worker.program_executor import ProgramExecutor

HERE = "tests.worker.programs"


def program(name: str, *, isolation: Isolation = "shared", **init: Any) -> ProgramSpec:
    """The program of this folder, or of another module where *name* says which."""
    entry_point = name if ":" in name else f"{HERE}:{name}"
    return ProgramSpec(
        entry_point=entry_point, init=init, version=program_version(entry_point, init), isolation=isolation
    )


def metric(name: str) -> MetricSpec:
    entry_point = name if ":" in name else f"{HERE}:{name}"
    return MetricSpec(entry_point=entry_point, version=metric_version(entry_point))


def spec(of: ProgramSpec, inputs: Mapping[str, Any], values: Mapping[str, Any]) -> TrialSpec:
    return TrialSpec(
        program=of, example=Example(example_id="one", inputs=inputs), configuration=Configuration(values), seed=11
    )


class Bench:
    """The executor's callbacks: outcomes by attempt, and the attempts whose slot came free late."""

    def __init__(self, *, slots: int = 4) -> None:
        self.released: asyncio.Queue[int] = asyncio.Queue()
        self.delivered: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._outcomes: dict[int, asyncio.Future[TrialOutcome]] = {}
        self.executor = ProgramExecutor(slots=slots, deliver=self._deliver, release=self._release)

    def open(self, of: ProgramSpec, judges: Sequence[str] = ()) -> int:
        """Open a session of the program and its metrics."""
        number = next(self._numbers)
        metrics = [metric_to_wire(metric(name)) for name in judges]
        self.executor.context.open(types_pb2.Session(session_id=number, program=program_to_wire(of), metrics=metrics))
        return number

    def submit(self, trial: TrialSpec, *, session: int, version: int = 1) -> int:
        """Run a trial under a version of its session, made of its configuration unless it is there."""
        number = next(self._numbers)
        self._outcomes[number] = self._loop.create_future()
        self.executor.context.put(session, version, trial.configuration)
        self.executor.submit(trial_to_wire(trial, id=number, session_id=session, version=version, timeout_s=0))
        return number

    async def outcome(self, number: int) -> TrialOutcome:
        """What became of a trial."""
        return await asyncio.wait_for(asyncio.shield(self._outcomes[number]), 5)

    async def run(
        self,
        of: ProgramSpec | str,
        *,
        judges: Sequence[str] = (),
        values: Mapping[str, Any] | None = None,
        **inputs: Any,
    ) -> TrialOutcome:
        """Run one trial in a session of its own."""
        of = program(of) if isinstance(of, str) else of
        trial = spec(of, inputs or {"x": 2}, values or {})
        return await self.outcome(self.submit(trial, session=self.open(of, judges)))

    def _deliver(self, outcome: types_pb2.Outcome) -> None:
        self._loop.call_soon_threadsafe(self._settle, outcome)

    def _settle(self, outcome: types_pb2.Outcome) -> None:
        self.delivered.append(outcome.id)
        self._outcomes[outcome.id].set_result(outcome_from_wire(outcome, b""))

    def _release(self, number: int) -> None:
        self._loop.call_soon_threadsafe(self.released.put_nowait, number)


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """`project(name="source")` writes modules into a folder that programs are imported from."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)

    def write(**modules: str) -> Path:
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source)
        return folder

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(folder)):
            del sys.modules[name]

"""One trial of a DSPy program without an executor, so that its calls can be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from dspex_pipelines.engine.calls.trial_calls import Caller, TrialCalls, begin_trial, end_trial
from dspex_pipelines.engine.throttling.throttle import Verdict
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.worker.instances import Instances, LoadedProgram, ProgramLoader
from tests.worker.conftest import metric, program

HERE = "tests.worker.dspy_modules"


class Leave:
    """Gives leave at once, and keeps what was asked, and how it ended."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, bool]] = []
        self.ended: list[tuple[Verdict, int]] = []

    def ask(self, trial: int, model: str, tokens: int, *, again: bool) -> Leave:
        self.asked.append((model, tokens, again))
        return self

    @property
    def granted(self) -> Future[None]:
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def end(self, verdict: Verdict, *, retry_after_s: float = 0.0, tokens: int = 0) -> None:
        self.ended.append((verdict, tokens))


class Trials:
    """A program under one configuration, and trials of it."""

    def __init__(
        self, name: str, values: Mapping[str, Any] | None = None, *, metrics: tuple[str, ...] = (), **init: Any
    ) -> None:
        values = values or {}
        self.leave = Leave()
        judges = tuple(metric(one if ":" in one else f"{HERE}:{one}") for one in metrics)
        of = program(name if ":" in name else f"{HERE}:{name}", **init)
        self.program: LoadedProgram = ProgramLoader().load(of, judges, ("question",), tuple(values))
        self.instance = Instances().get(self.program, Configuration(values))

    def begun(self, **of: Any) -> TrialCalls:
        calls = TrialCalls(Caller(self.leave), trial=1, **of)
        begin_trial(calls)
        return calls

    def around(self, calls: TrialCalls) -> Any:
        assert self.program.convention is not None
        return self.program.convention.around(calls, self.instance)

    def run(self, question: str = "Which?", **of: Any) -> tuple[Any, TrialCalls]:
        calls = self.begun(**of)
        try:
            with self.around(calls):
                return self.instance(question=question), calls
        finally:
            end_trial()

    async def arun(self, question: str = "Which?", **of: Any) -> tuple[Any, TrialCalls]:
        calls = self.begun(**of)
        with self.around(calls):
            return await self.instance(question=question), calls

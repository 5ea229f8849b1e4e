"""What a runner begins without a coroutine for each trial, over a pool of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.errors import ProgramUnavailable
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, ProgramSpec, TrialSpec


class Pool:
    """Answers what it is sent when it is told to; *room* is how many trials it takes."""

    def __init__(self, *, room: int = 1_000) -> None:
        self.room = room
        self.may_apply = asyncio.Event()
        self.refused: Exception | None = None
        self.sessions = 0
        self.applied: list[dict[str, Any]] = []
        self.never: list[dict[str, Any]] = []
        """Configurations that are refused."""
        self.calls = 0
        self.sent: list[tuple[TrialSpec, int, Callable[[Any, TrialOutcome | Exception], None], Any]] = []

    async def open_session(self, *_: object) -> int:
        self.sessions += 1
        if self.refused is not None:
            raise self.refused
        return self.sessions

    async def set_variables(self, session_id: int, values: dict[str, Any], **_: object) -> Any:
        self.applied.append(dict(values))
        version = len(self.applied)
        await self.may_apply.wait()
        return type("Snapshot", (), {"version": version, "digest": Configuration(values).digest})

    async def make_versions(self, session_id: int, many: Sequence[dict[str, Any]]) -> list[int]:
        del session_id
        self.calls += 1
        first = len(self.applied) + 1
        self.applied += map(dict, many)
        versions = [0 if values in self.never else number for number, values in enumerate(many, start=first)]
        await self.may_apply.wait()
        return versions

    async def execute(self, spec: TrialSpec, *, version: int, **_: object) -> TrialOutcome:
        return TrialResult(spec.trial_id, spec.configuration.digest, session_version=version)

    def send(self, spec: TrialSpec, session_id: int, version: int, *more: Any) -> int:
        del session_id
        if len(self.sent) >= self.room:
            return 0
        *_, answered, about = more
        self.sent.append((spec, version, answered, about))
        return len(self.sent)

    def answer(self) -> None:
        for spec, version, answered, about in self.sent:
            answered(about, TrialResult(spec.trial_id, spec.configuration.digest, session_version=version))
        self.sent.clear()

    def drop(self, answered: object) -> None:
        del answered
        self.sent.clear()


class Begun:
    """Trials that were begun, by number, and what has become of them."""

    def __init__(self, pool: Pool, *, configurations: int = 3) -> None:
        self.configurations = configurations
        self.runner = TrialRunner(pool, metrics=[], space_json="", timeout_s=60)  # type: ignore[arg-type]
        self.ended: dict[int, TrialOutcome] = {}
        self.again: list[int] = []

    def trial(self, number: int) -> TrialSpec:
        return TrialSpec(
            ProgramSpec(entry_point="a.b:c", version="1"),
            Example(example_id=str(number), inputs={"x": number}),
            Configuration({"k": number % self.configurations}),
        )

    def begin(self, *numbers: int) -> None:
        for number in numbers:
            assert self.runner.begin(self.trial(number), b"", number, self.ended.__setitem__, self.again.append)


async def settled() -> None:
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0)


async def test_trials_wait_without_a_task_each_until_their_configuration_is_applied() -> None:
    pool = Pool()
    begun = Begun(pool)
    begun.begin(*range(300))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) <= 1 + 2 * 3, "one that waits and one that asks for each configuration"
    assert (pool.sessions, pool.sent) == (1, [])
    pool.may_apply.set()
    await settled()
    assert [values["k"] for values in pool.applied] == [0, 1, 2]
    pool.answer()
    assert sorted(begun.ended) == list(range(300))
    for number, outcome in begun.ended.items():
        assert isinstance(outcome, TrialResult)
        assert pool.applied[outcome.session_version - 1] == {"k": number % 3}
    assert begun.again == []


async def test_configurations_are_applied_as_many_at_a_time_as_have_come_since_the_last_call() -> None:
    pool = Pool()
    begun = Begun(pool, configurations=1_000)
    begun.begin(*range(200))
    for _ in range(20):
        await asyncio.sleep(0)
    assert (pool.calls, len(pool.applied)) == (1, 64), "one call at a time, of so many"
    begun.begin(*range(200, 210))
    pool.may_apply.set()
    await settled()
    assert (pool.calls, len(pool.applied)) == (4, 210)
    assert [spec.configuration.values for spec, *_ in pool.sent] == pool.applied
    assert [pool.applied[version - 1] for _, version, *_ in pool.sent] == pool.applied
    begun.begin(*range(210))
    assert pool.calls == 4, "they are remembered"


async def test_a_configuration_that_is_refused_costs_the_others_nothing() -> None:
    pool = Pool()
    pool.never = [{"k": 1}]
    begun = Begun(pool)
    begun.begin(*range(6))
    pool.may_apply.set()
    await settled()
    pool.answer()
    assert sorted(begun.ended) == [0, 2, 3, 5]
    assert begun.again == [1, 4], "to be run alone, which says why"


async def test_those_for_which_there_is_no_room_then_are_to_be_run() -> None:
    pool = Pool(room=2)
    begun = Begun(pool)
    begun.begin(0, 3, 6, 9)
    pool.may_apply.set()
    await settled()
    assert [about[0] for *_, about in pool.sent] == [0, 3]
    assert begun.again == [6, 9]


async def test_what_cannot_be_applied_is_to_be_run_and_says_why() -> None:
    pool = Pool()
    pool.refused = ProgramUnavailable(entry_point="a.b:c", reason="gone")
    begun = Begun(pool)
    begun.begin(0, 1, 3)
    await settled()
    assert sorted(begun.again) == [0, 1, 3]
    outcome = await begun.runner.run(begun.trial(0))
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.PROGRAM_UNAVAILABLE
    pool.refused = None
    pool.may_apply.set()
    begun.begin(0)
    await settled()
    pool.answer()
    assert list(begun.ended) == [0]


@pytest.mark.parametrize("applied", [False, True])
async def test_what_waits_is_dropped_with_the_rest(applied: bool) -> None:
    pool = Pool()
    begun = Begun(pool)
    begun.begin(*range(10))
    await asyncio.sleep(0)
    if applied:
        pool.may_apply.set()
    begun.runner.drop()
    begun.begin(0)
    pool.may_apply.set()
    await settled()
    assert [about[0] for *_, about in pool.sent] == [0], "and later ones are not"
    pool.answer()
    assert (list(begun.ended), begun.again) == ([0], [])


async def test_nothing_more_is_applied_for_what_was_dropped() -> None:
    pool = Pool()
    begun = Begun(pool, configurations=1_000)
    begun.begin(*range(900))
    await asyncio.sleep(0)
    begun.runner.drop()
    pool.may_apply.set()
    await settled()
    assert (pool.calls, pool.sent, begun.again) == (1, [], [])

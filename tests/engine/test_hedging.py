"""Second copies of trials that take long, over a pool of this process and a clock that nobody waits for."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dspex_pipelines.engine.hedging import HedgedPool
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.errors import PoolInterrupted
from dspex_pipelines.model.hedging import Hedging
from dspex_pipelines.model.outcome import Attempt, ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import encode
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, ProgramSpec, TrialSpec

POLICY = Hedging(quantile=0.99, fraction=0.1, after=20)
NEVER_S = 1e9


class InstantLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to whatever is due next."""

    def __init__(self) -> None:
        selector = selectors.DefaultSelector()
        super().__init__(selector)
        self._now = 1_000.0
        select = selector.select

        def jump(timeout: float | None = None) -> Any:
            assert timeout is not None, "everything waits for something that never comes"
            self._now += max(0.0, timeout)
            return select(0)

        selector.select = jump  # type: ignore[method-assign]

    def time(self) -> float:
        return self._now


def on_its_clock(test: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        runner.run(test)


def now() -> float:
    return asyncio.get_running_loop().time()


def result(spec: TrialSpec, **more: Any) -> TrialResult:
    return TrialResult(spec.trial_id, spec.configuration.digest, **more)


def error(spec: TrialSpec, kind: ErrorType, message: str = "no", **more: Any) -> TrialError:
    return TrialError(spec.trial_id, spec.configuration.digest, kind, message, **more)


class Run:
    """One copy of a trial, as the pool has it."""

    def __init__(self, number: int, copy: int, spec: TrialSpec, version: int) -> None:
        self.number = number
        self.copy = copy
        self.spec = spec
        self.version = version
        self.sent = now()
        self.began = self.ended = 0.0
        self.withdrawn = self.cancelled = False


Answer = Callable[[Run], tuple[float, Callable[..., TrialOutcome] | BaseException]]


class Pool:
    """Begins what it is sent in its order; *answer* says how long a run takes and what comes of it."""

    def __init__(self, answer: Answer, *, slots: int = 10_000) -> None:
        self.answer = answer
        self.runs: list[Run] = []
        self.committed = self.answered = self.sessions = 0
        self.lost = asyncio.Event()
        self._slots = asyncio.Semaphore(slots)

    async def open_session(self, *_: object) -> int:
        self.sessions += 1
        return self.sessions

    async def set_variables(self, session_id: int, values: dict[str, object], **_: object) -> Any:
        return type("Snapshot", (), {"version": session_id, "digest": Configuration(values).digest})

    async def make_versions(self, session_id: int, many: Sequence[object]) -> list[int]:
        return [session_id] * len(many)

    async def execute(
        self, spec: TrialSpec, *, version: int, withdrawn: asyncio.Future[None] | None = None, **_: object
    ) -> TrialOutcome:
        number = spec.example.inputs["x"]
        run = Run(number, sum(one.number == number for one in self.runs), spec, version)
        self.runs.append(run)
        work = asyncio.ensure_future(self._work(run))
        lost = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait(
                [one for one in (work, lost, withdrawn) if one is not None], return_when=asyncio.FIRST_COMPLETED
            )
            if lost.done():
                raise PoolInterrupted(address="x")
            if not work.done():
                run.withdrawn = True
                said = "cancelled while it ran" if run.began else "cancelled before it ran"
                outcome: TrialOutcome = error(spec, ErrorType.CANCELLED, said, attempts=0)
            else:
                outcome = work.result()
        except asyncio.CancelledError:
            run.cancelled = True
            raise
        finally:
            lost.cancel()
            work.cancel()
            run.ended = now()
        self.answered += 1
        if withdrawn is not None and withdrawn.done():
            self.commit(1)
        if not run.began:
            return outcome
        return outcome._replace(attempts=1, worker=f"w{run.copy}", run_s=now() - run.began)

    async def _work(self, run: Run) -> TrialOutcome:
        async with self._slots:
            run.began = now()
            seconds, answer = self.answer(run)
            await asyncio.sleep(seconds)
            if isinstance(answer, BaseException):
                raise answer
            return answer(run.spec)

    def commit(self, count: int) -> None:
        self.committed += count

    def copies_of(self, number: int) -> list[Run]:
        return [run for run in self.runs if run.number == number]


def trial(number: int) -> TrialSpec:
    return TrialSpec(
        program=ProgramSpec(entry_point="a.b:c", version="1"),
        example=Example(example_id=str(number), inputs={"x": number}),
        configuration=Configuration({}),
    )


class Evaluated:
    """The outcomes of so many trials, in the order of their numbers."""

    def __init__(self, pool: Pool, hedged: HedgedPool) -> None:
        self.pool = pool
        self.hedged = hedged
        self.outcomes: dict[int, TrialOutcome] = {}
        self.took_s: dict[int, float] = {}

    async def run(self, count: int, *, at_a_time: int = 8) -> Evaluated:
        runner = TrialRunner(self.hedged, metrics=[], space_json="", timeout_s=60)
        numbers = iter(range(count))

        async def lane() -> None:
            for number in numbers:
                began = now()
                self.outcomes[number] = await runner.run(trial(number))
                self.took_s[number] = now() - began

        async with asyncio.TaskGroup() as lanes:
            for _ in range(at_a_time):
                lanes.create_task(lane())
        return self


async def evaluate(
    answer: Answer, count: int, *, policy: Hedging = POLICY, slots: int = 10_000, at_a_time: int = 8, **more: Any
) -> Evaluated:
    pool = Pool(answer, slots=slots)
    return await Evaluated(pool, HedgedPool(pool, policy, **more)).run(count, at_a_time=at_a_time)


STRAGGLER = 50
LIMIT_S = 2.0


def straggles(first: tuple[float, Any], second: tuple[float, Any] = (1.0, result)) -> Answer:
    """One trial takes long; the copies do as is said. Of the others, the first takes as long as is not long yet."""

    def answer(run: Run) -> tuple[float, Any]:
        if run.number == STRAGGLER:
            return (first, second)[run.copy]
        return (1.0 if run.number else LIMIT_S), result

    return answer


hangs = straggles((NEVER_S, result))


def uses(**usage: float) -> Callable[[TrialSpec], TrialOutcome]:
    return lambda spec: result(spec, usage_payload=encode(usage))


def test_the_second_copy_of_a_straggler_answers_first_and_the_first_is_cancelled() -> None:
    async def test() -> None:
        done = await evaluate(hangs, 100)
        first, second = done.pool.copies_of(STRAGGLER)
        assert LIMIT_S <= second.sent - first.began <= LIMIT_S + 1.0, "once that is known of one sent after it"
        assert (first.withdrawn, second.withdrawn) == (True, False)
        assert first.ended == second.ended, "its slot is free"
        assert (done.hedged.hedged, done.hedged.won) == (1, 1)
        assert len(done.pool.runs) == 101
        outcome = done.outcomes[STRAGGLER]
        assert isinstance(outcome, TrialResult)
        assert (outcome.worker, outcome.attempts) == ("w1", 2)
        (cancelled,) = outcome.history
        assert cancelled == Attempt(
            number=1,
            worker="w0",
            type=ErrorType.CANCELLED,
            message="first copy of a hedged trial: cancelled while it ran",
            run_s=first.ended - first.began,
        )
        assert done.pool.answered - done.pool.committed == len(done.outcomes) == 100, "no credit is lost"
        assert all(not one.history for number, one in done.outcomes.items() if number != STRAGGLER)

    on_its_clock(test())


def test_the_first_copy_may_still_answer_first() -> None:
    async def test() -> None:
        done = await evaluate(straggles((5.0, result), (100.0, result)), 100)
        first, second = done.pool.copies_of(STRAGGLER)
        assert (first.withdrawn, second.withdrawn) == (False, True)
        assert (done.hedged.hedged, done.hedged.won) == (1, 0)
        outcome = done.outcomes[STRAGGLER]
        assert isinstance(outcome, TrialResult)
        assert (outcome.worker, [past.message for past in outcome.history]) == (
            "w0",
            ["second copy of a hedged trial: cancelled while it ran"],
        )

    on_its_clock(test())


def test_both_run_under_the_same_snapshot_and_as_the_same_trial() -> None:
    async def test() -> None:
        done = await evaluate(hangs, 100)
        first, second = done.pool.copies_of(STRAGGLER)
        assert (first.spec, first.version) == (second.spec, second.version)

    on_its_clock(test())


@pytest.mark.parametrize(
    ("policy", "straggler"),
    [
        pytest.param(Hedging(quantile=0.9, fraction=0.1, after=101), STRAGGLER, id="too-few-have-ended"),
        pytest.param(Hedging(quantile=0.9, fraction=0.009, after=1), STRAGGLER, id="the-fraction-is-less-than-one"),
    ],
)
def test_there_is_no_second_copy(policy: Hedging, straggler: int) -> None:
    async def test() -> None:
        done = await evaluate(straggles((50.0, result)), 100, policy=policy)
        assert len(done.pool.runs) == 100
        assert done.hedged.hedged == 0
        assert done.took_s[straggler] == 50.0

    on_its_clock(test())


def test_trials_whose_errors_may_pass_allow_no_second_copies() -> None:
    """A provider that goes down is not asked ever more often for it."""

    def answer(run: Run) -> tuple[float, Callable[..., TrialOutcome]]:
        if run.number < 20:
            return 1.0, result
        return 50.0 + 13 * run.number % 37, lambda spec: error(spec, ErrorType.PROVIDER_UNAVAILABLE)

    async def test() -> None:
        done = await evaluate(answer, 200, policy=Hedging(quantile=0.5, fraction=0.1, after=20))
        assert done.hedged.hedged == 2

    on_its_clock(test())


def test_nothing_is_sent_again_that_is_not_allowed_to() -> None:
    async def test() -> None:
        asked: list[bytes] = []

        def may(trial_id: bytes) -> bool:
            asked.append(trial_id)
            return False

        done = await evaluate(straggles((50.0, result)), 100, may=may)
        assert len(done.pool.runs) == 100
        assert set(asked) == {trial(STRAGGLER).trial_id}

    on_its_clock(test())


def test_outputs_that_are_only_judged_are_not_sent_again() -> None:
    async def test() -> None:
        done = await evaluate(hangs, 40)
        again = TrialRunner(done.hedged, metrics=[], space_json="", timeout_s=60)
        slow = asyncio.create_task(again.run(trial(STRAGGLER), b"outputs"))
        await done.run(40)
        assert len(done.pool.copies_of(STRAGGLER)) == 1
        slow.cancel()

    on_its_clock(test())


def test_a_trial_that_waits_for_a_slot_is_not_sent_again() -> None:
    """Others fill the pool halfway: what waits for ten times as long as any trial has taken is no straggler."""

    async def test() -> None:
        pool = Pool(
            lambda run: (10.0 if run.number < 0 else 1.0 if run.copy or run.number else LIMIT_S, result), slots=2
        )
        done = Evaluated(pool, HedgedPool(pool, POLICY))
        await done.run(40, at_a_time=2)
        others = [asyncio.create_task(pool.execute(trial(-1 - n), version=1)) for n in range(6)]
        await done.run(40, at_a_time=2)
        assert max(done.took_s.values()) > 30.0
        assert done.hedged.hedged == 0
        await asyncio.gather(*others)

    on_its_clock(test())


def test_a_second_copy_that_never_ran_leaves_no_trace() -> None:
    async def test() -> None:
        done = await evaluate(straggles((4.5, result)), 100, slots=2, at_a_time=32)
        outcome = done.outcomes[STRAGGLER]
        assert done.hedged.hedged == 1
        assert (outcome.attempts, outcome.history, outcome.usage_payload) == (1, (), b"")

    on_its_clock(test())


@pytest.mark.parametrize(
    ("first", "second", "type_", "workers"),
    [
        pytest.param((5.0, ErrorType.PROGRAM_EXCEPTION), (9.0, None), ErrorType.PROGRAM_EXCEPTION, "w0", id="final"),
        pytest.param((5.0, ErrorType.RATE_LIMITED), (9.0, None), None, "w1", id="one-that-passes"),
        pytest.param((5.0, ErrorType.TIMEOUT_RUN), (9.0, None), None, "w1", id="timeout"),
        pytest.param((20.0, None), (1.0, ErrorType.WORKER_LOST), None, "w0", id="the-second-is-lost"),
        pytest.param(
            (5.0, ErrorType.RATE_LIMITED), (9.0, ErrorType.TIMEOUT_RUN), ErrorType.TIMEOUT_RUN, "w1", id="two"
        ),
        pytest.param(
            (5.0, ErrorType.RATE_LIMITED), (9.0, ErrorType.POISON), ErrorType.POISON, "w1", id="final-after-passing"
        ),
    ],
)
def test_what_counts(
    first: tuple[float, ErrorType | None], second: tuple[float, ErrorType | None], type_: ErrorType | None, workers: str
) -> None:
    def copy(seconds: float, kind: ErrorType | None) -> tuple[float, Callable[..., TrialOutcome]]:
        return seconds, result if kind is None else lambda spec: error(spec, kind)

    async def test() -> None:
        done = await evaluate(straggles(copy(*first), copy(*second)), 100)
        outcome = done.outcomes[STRAGGLER]
        assert (outcome.type if isinstance(outcome, TrialError) else None) is type_
        assert (outcome.worker, len(outcome.history), outcome.attempts) == (workers, 1, 2)
        assert done.pool.answered - done.pool.committed == 100

    on_its_clock(test())


def test_what_both_have_used_is_counted() -> None:
    async def test() -> None:
        failed = lambda spec: error(spec, ErrorType.TIMEOUT_RUN, usage_payload=encode({"tokens": 3}))  # noqa: E731
        done = await evaluate(straggles((5.0, failed), (9.0, uses(tokens=4, calls=1))), 100)
        assert done.outcomes[STRAGGLER].usage == {"tokens": 7, "calls": 1}
        done = await evaluate(straggles((30.0, uses(tokens=5)), (1.0, uses(tokens=4))), 100)
        assert done.outcomes[STRAGGLER].usage == {"tokens": 4, "untold_copies": 1}, "it was cancelled"

    on_its_clock(test())


def test_cancelling_the_wait_cancels_both() -> None:
    async def test() -> None:
        pool = Pool(straggles((NEVER_S, result), (NEVER_S, result)))
        done = Evaluated(pool, HedgedPool(pool, POLICY))
        running = asyncio.create_task(done.run(100))
        await asyncio.sleep(1_000)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert [run.cancelled for run in pool.copies_of(STRAGGLER)] == [True, True]

    on_its_clock(test())


def test_a_pool_that_is_lost_with_both_is_sent_the_trial_again() -> None:
    async def test() -> None:
        answers = iter([NEVER_S, NEVER_S, 1.0])
        pool = Pool(lambda run: (next(answers) if run.number == STRAGGLER else 1.0, result))
        done = Evaluated(pool, HedgedPool(pool, POLICY))
        running = asyncio.create_task(done.run(100))
        await asyncio.sleep(1_000)
        pool.lost.set()
        await asyncio.sleep(0)
        pool.lost.clear()
        await running
        assert [run.version for run in pool.copies_of(STRAGGLER)] == [1, 1, 2]
        outcome = done.outcomes[STRAGGLER]
        assert isinstance(outcome, TrialResult)
        assert outcome.history == ()
        assert pool.answered - pool.committed == 100

    on_its_clock(test())


def test_a_copy_that_does_not_say_that_it_is_cancelled_holds_up_nobody() -> None:
    class Deaf(Pool):
        async def execute(self, spec: TrialSpec, *, withdrawn: Any = None, **more: Any) -> TrialOutcome:
            return await super().execute(spec, **more)

    async def test() -> None:
        pool = Deaf(hangs)
        done = await Evaluated(pool, HedgedPool(pool, POLICY)).run(100)
        first, second = pool.copies_of(STRAGGLER)
        assert first.cancelled
        assert first.ended - second.ended == pytest.approx(1.0)
        assert [past.message for past in done.outcomes[STRAGGLER].history] == [
            "first copy of a hedged trial: it was not heard of again"
        ]

    on_its_clock(test())


@example(
    # Both copies answer at the same moment.
    seconds=[0.0, 0.0, 0.0, 1.0, 0.0, 1.0],
    kinds=[None],
    policy=Hedging(quantile=0.5, fraction=1.0, after=1),
    slots=2,
    at_a_time=2,
)
@given(
    seconds=st.lists(st.floats(0, 20) | st.floats(0, 1_000), min_size=1, max_size=120),
    kinds=st.lists(st.none() | st.sampled_from(ErrorType), min_size=1, max_size=7),
    policy=st.builds(Hedging, quantile=st.floats(0.01, 0.99), fraction=st.floats(0.01, 1), after=st.integers(1, 30)),
    slots=st.integers(1, 12),
    at_a_time=st.integers(1, 12),
)
def test_every_trial_has_one_outcome_and_few_are_hedged(
    seconds: list[float], kinds: list[ErrorType | None], policy: Hedging, slots: int, at_a_time: int
) -> None:
    began: list[int] = []

    def answer(run: Run) -> tuple[float, Callable[..., TrialOutcome]]:
        began.append(run.number)
        kind = kinds[(run.number + run.copy) % len(kinds)]
        if kind in (None, ErrorType.STALE_STATE):  # a stale one is sent again by the runner
            return seconds[(run.number + 7 * run.copy) % len(seconds)], result
        return seconds[(run.number + 7 * run.copy) % len(seconds)], lambda spec: error(spec, kind)

    async def test() -> None:
        done = await evaluate(answer, len(seconds), policy=policy, slots=slots, at_a_time=at_a_time)
        count = len(seconds)
        assert sorted(done.outcomes) == list(range(count))
        assert done.pool.answered - done.pool.committed == count
        assert len(done.pool.runs) == count + done.hedged.hedged
        assert done.hedged.won <= done.hedged.hedged <= policy.fraction * count
        for number in range(count):
            first, *second = done.pool.copies_of(number)
            assert len(second) <= 1
            assert not second or first.began, "it was sent again while it waited for a slot"
            assert done.outcomes[number].attempts == 1 + any(run.began for run in second)
        assert not asyncio.all_tasks() - {asyncio.current_task()}

    on_its_clock(test())

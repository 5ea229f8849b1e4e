"""The executor's promises: bounded, complete, back-pressured, cancellable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex_pipelines.engine.executor import JobComplete, ParallelExecutor, Runner, Sender
from dspex_pipelines.errors import InvalidValue


async def double(item: int) -> int:
    await asyncio.sleep(0)
    return 2 * item


@given(
    count=st.integers(min_value=0, max_value=60),
    concurrency=st.integers(min_value=1, max_value=20),
    raising=st.sets(st.integers(min_value=0, max_value=59)),
)
@settings(deadline=None)
def test_every_item_has_one_outcome_and_the_bound_holds(count: int, concurrency: int, raising: set[int]) -> None:
    running = most = 0

    async def runner(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(item % 4):
            await asyncio.sleep(0)
        running -= 1
        if item in raising:
            raise ValueError(item)
        return item

    async def run() -> list[tuple[int, bool]]:
        executor = ParallelExecutor[int, int](max_concurrency=concurrency)
        found = [(outcome.item, outcome.ok) async for outcome in executor.run(range(count), runner)]
        progress = executor.get_progress()
        assert progress.done == count
        assert progress.failed == len([item for item in range(count) if item in raising])
        assert progress.in_flight == 0
        return found

    found = asyncio.run(run())
    assert sorted(found) == [(item, item not in raising) for item in range(count)]
    assert most <= concurrency


@pytest.mark.parametrize("concurrency", [1, 3, 50])
async def test_stop_lets_what_is_in_flight_end_and_pulls_nothing_more(concurrency: int) -> None:
    started: list[int] = []
    release = asyncio.Event()

    async def runner(item: int) -> int:
        started.append(item)
        if item >= 5:
            await release.wait()
        return item

    executor = ParallelExecutor[int, int](max_concurrency=concurrency)
    found: list[int] = []
    async for outcome in executor.run(iter(range(10_000)), runner):
        assert outcome.ok
        found.append(outcome.item)
        if len(found) == 5:
            executor.stop()
            release.set()
    assert sorted(found) == started
    assert len(found) <= 5 + 2 * concurrency
    assert executor.get_progress().in_flight == 0


@pytest.mark.parametrize("concurrency", [1, 3, 8])
async def test_a_held_outcome_keeps_its_place(concurrency: int) -> None:
    started = let_go = 0

    async def runner(item: int) -> int:
        nonlocal started
        started += 1
        assert started - let_go <= concurrency
        await asyncio.sleep(0)
        return item

    executor = ParallelExecutor[int, int](max_concurrency=concurrency, hold_outcomes=True)
    held: list[int] = []
    found: list[int] = []
    async for batch in executor.run_batches(iter(range(100)), runner):
        held += [outcome.item for outcome in batch]
        if len(held) == min(concurrency, 100 - len(found)):
            found += held
            let_go += len(held)
            executor.let_go(len(held))
            held = []
    assert sorted([*found, *held]) == list(range(100))


async def test_stop_ends_those_that_wait_for_a_held_place() -> None:
    executor = ParallelExecutor[int, int](max_concurrency=2, hold_outcomes=True)
    found: list[int] = []
    async for outcome in executor.run(iter(range(100)), double):
        found.append(outcome.item)
        if len(found) == 2:
            asyncio.get_running_loop().call_soon(executor.stop)
    assert found == [0, 1]


async def test_input_is_pulled_only_as_there_is_room() -> None:
    pulled = 0

    def endless() -> Iterator[int]:
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    executor = ParallelExecutor[int, int](max_concurrency=4)
    outcomes = executor.run(endless(), double)
    seen = 0
    async for _ in outcomes:
        seen += 1
        if seen == 20:
            break
    await outcomes.aclose()
    assert pulled <= 20 + 3 * 4
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("steps", [0, 3, 1_000])
async def test_what_comes_next_is_prepared_while_there_is_no_room(steps: int) -> None:
    """A little in each turn of the loop, so that whoever makes room is not kept waiting."""
    prepared: list[int] = []
    at_start: list[int] = []
    release = asyncio.Event()

    def prepare() -> bool:
        prepared.append(turns)
        return len(prepared) < steps

    async def runner(item: int) -> int:
        at_start.append(len(prepared))
        await release.wait()
        return item

    async def consume() -> None:
        async with aclosing(executor.run_batches(range(4), runner, prepare=prepare)) as batches:
            async for _ in batches:
                pass

    executor = ParallelExecutor[int, int](max_concurrency=2)
    turns = 0
    consumer = asyncio.create_task(consume())
    while turns < 20:
        turns += 1
        await asyncio.sleep(0)
    assert len(at_start) == 2
    assert max(at_start) <= 1, "what there is room for comes first"
    assert len(prepared) == len(set(prepared)), "once in a turn"
    assert len(prepared) == max(1, steps) if steps < 20 else 10 < len(prepared) <= 20
    release.set()
    await consumer
    assert len(at_start) == 4
    assert steps < 20 or len(prepared) < 40, "no more once there is room"


async def test_a_slow_consumer_holds_the_runners_back() -> None:
    finished = 0

    async def runner(item: int) -> int:
        nonlocal finished
        finished += 1
        return item

    executor = ParallelExecutor[int, int](max_concurrency=3)
    outcomes = executor.run_batches(range(1_000), runner)
    await anext(outcomes)
    for _ in range(100):
        await asyncio.sleep(0)
    assert finished <= 3 * 3
    await outcomes.aclose()


async def test_an_input_that_raises_keeps_what_was_started() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise RuntimeError("the input broke")

    seen: list[int] = []
    with pytest.raises(RuntimeError, match="the input broke"):
        async for outcome in ParallelExecutor[int, int](max_concurrency=5).run(broken(), double):
            seen.append(outcome.item)
    assert sorted(seen) == [1, 2]


async def test_an_async_input_is_taken_too() -> None:
    async def items() -> AsyncIterator[int]:
        for item in range(10):
            await asyncio.sleep(0)
            yield item

    executor = ParallelExecutor[int, int](max_concurrency=3)
    assert sorted([outcome.item async for outcome in executor.run(items(), double)]) == list(range(10))


async def test_cancel_ends_the_run_and_the_runners() -> None:
    started = asyncio.Event()
    cancelled = 0

    async def hang(_: int) -> int:
        nonlocal cancelled
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return 0

    executor = ParallelExecutor[int, int](max_concurrency=2)

    async def consume() -> int:
        return len([outcome async for outcome in executor.run(range(100), hang)])

    consumer = asyncio.create_task(consume())
    await started.wait()
    executor.cancel()
    executor.cancel()
    assert await consumer == 0
    assert cancelled >= 1


async def test_a_runner_that_is_cancelled_by_something_else_is_an_outcome() -> None:
    """What the runner awaits may have been cancelled by anybody; the other items must not go with it."""

    async def runner(item: int) -> int:
        if item % 3 == 0:
            raise asyncio.CancelledError
        return item

    executor = ParallelExecutor[int, int](max_concurrency=2)
    outcomes = [outcome async for outcome in executor.run(range(10), runner)]
    assert sorted((outcome.item, outcome.ok) for outcome in outcomes) == [(item, item % 3 != 0) for item in range(10)]
    assert executor.get_progress().failed == 4


async def test_a_bug_in_counting_ends_the_run() -> None:
    def broken(_: int) -> bool:
        raise RuntimeError("a bug")

    executor = ParallelExecutor[int, int](max_concurrency=3, is_failure=broken)
    with pytest.raises(RuntimeError, match="a bug"):
        assert [outcome async for outcome in executor.run(range(1_000), double)]
    assert executor.get_progress().done <= 3


async def test_a_second_run_waits_for_the_first_to_end() -> None:
    executor = ParallelExecutor[int, int](max_concurrency=1)
    first = executor.run_batches(range(5), double)
    await anext(first)
    with pytest.raises(RuntimeError, match="has a run already"):
        await anext(executor.run(range(5), double))
    await first.aclose()
    assert len([outcome async for outcome in executor.run(range(5), double)]) == 5


async def test_a_timeout_is_an_outcome() -> None:
    async def hang(_: int) -> int:
        await asyncio.Event().wait()
        return 0

    executor = ParallelExecutor[int, int](max_concurrency=2, timeout_per_trial_s=0.01)
    outcomes = [outcome async for outcome in executor.run(range(3), hang)]
    assert [type(outcome.error) for outcome in outcomes] == [TimeoutError] * 3


async def test_run_async_answers_at_once_and_completes_once() -> None:
    told: asyncio.Queue[JobComplete[int, int]] = asyncio.Queue()
    executor = ParallelExecutor[int, int](max_concurrency=2)
    job_id = executor.run_async(range(5), double, on_complete=told.put_nowait)
    assert told.empty()
    complete = await told.get()
    assert complete.job_id == job_id
    assert sorted(outcome.result for outcome in complete.results) == [0, 2, 4, 6, 8]  # type: ignore[type-var]
    assert complete.error is None
    await asyncio.sleep(0)
    assert told.empty()


async def test_a_job_cancelled_before_its_first_step_completes_once() -> None:
    told: asyncio.Queue[JobComplete[int, int]] = asyncio.Queue()
    executor = ParallelExecutor[int, int](max_concurrency=2)
    executor.run_async(range(5), double, on_complete=told.put_nowait)
    executor.cancel()
    complete = await told.get()
    assert complete.results == ()
    assert isinstance(complete.error, asyncio.CancelledError)
    assert told.empty()


async def test_a_job_reports_what_it_has_when_its_input_breaks() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise RuntimeError("the input broke")

    told: asyncio.Queue[JobComplete[int, int]] = asyncio.Queue()
    ParallelExecutor[int, int](max_concurrency=2).run_async(broken(), double, on_complete=told.put_nowait)
    complete = await told.get()
    assert [outcome.result for outcome in complete.results] == [2]
    assert isinstance(complete.error, RuntimeError)


async def test_progress_counts_and_estimates() -> None:
    now = 0.0
    executor = ParallelExecutor[int, int](max_concurrency=1, clock=lambda: now)
    async for outcome in executor.run(range(10), double, total=10):
        now += 1.0
        if outcome.item == 4:
            progress = executor.get_progress()
            assert progress.done in (5, 6)
            assert progress.eta_s == pytest.approx((10 - progress.done) / progress.rate_per_s)


@pytest.mark.parametrize("options", [{"max_concurrency": 0}, {"max_concurrency": 1, "timeout_per_trial_s": 0}])
def test_bad_bounds_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidValue):
        ParallelExecutor(**options)  # type: ignore[arg-type]


class Sending(Sender[int, int]):
    """Begins what is no multiple of *awaited*; every third of those has to be awaited after all."""

    def __init__(self, *, awaited: int) -> None:
        self.awaited = awaited
        self.in_flight = self.most = 0
        self.begun: dict[int, asyncio.Handle] = {}
        self.ran: list[int] = []

    def begin(self, item: int, ended: Callable[[int, int], None], again: Callable[[int], None]) -> bool:
        if item % self.awaited == 0:
            return False

        def end() -> None:
            del self.begun[item]
            self._count(-1)
            if item % 3 == 0:
                again(item)
            else:
                ended(item, 2 * item)

        self._count(1)
        self.begun[item] = asyncio.get_running_loop().call_soon(end)
        return True

    def drop(self) -> None:
        for handle in self.begun.values():
            handle.cancel()
        self._count(-len(self.begun))
        self.begun.clear()

    async def __call__(self, item: int) -> int:
        self._count(1)
        self.ran.append(item)
        await asyncio.sleep(0)
        self._count(-1)
        return await double(item)

    def _count(self, more: int) -> None:
        self.in_flight += more
        self.most = max(self.most, self.in_flight)


@pytest.mark.parametrize("awaited", [1, 2, 5, 1_000])
@pytest.mark.parametrize("concurrency", [1, 4, 50])
async def test_what_can_be_begun_is_and_the_rest_is_awaited(awaited: int, concurrency: int) -> None:
    executor = ParallelExecutor[int, int](max_concurrency=concurrency)
    runner = Sending(awaited=awaited)
    found = [(outcome.item, outcome.result) async for outcome in executor.run(range(1, 101), runner)]
    assert sorted(found) == [(item, 2 * item) for item in range(1, 101)]
    assert sorted(runner.ran) == [item for item in range(1, 101) if item % awaited == 0 or item % 3 == 0]
    assert 0 < runner.most <= concurrency
    progress = executor.get_progress()
    assert (progress.done, progress.in_flight) == (100, 0)


@pytest.mark.parametrize("awaited", [2, 1_000])
@pytest.mark.parametrize("closed", [False, True], ids=["cancelled", "closed"])
async def test_what_was_begun_is_dropped(awaited: int, closed: bool) -> None:
    executor = ParallelExecutor[int, int](max_concurrency=8)
    runner = Sending(awaited=awaited)
    outcomes = executor.run_batches(iter(range(1, 1_000)), runner)
    await anext(outcomes)
    assert runner.in_flight
    if not closed:
        executor.cancel()
        assert not runner.begun
        async for _ in outcomes:
            pass
    await outcomes.aclose()
    await asyncio.sleep(0)
    assert not runner.begun
    assert executor.get_progress().in_flight == 0
    assert len(asyncio.all_tasks()) == 1


async def test_a_bug_in_beginning_ends_the_run() -> None:
    class Broken(Sending):
        def begin(self, item: int, ended: Callable[[int, int], None], again: Callable[[int], None]) -> bool:
            if item == 5:
                raise RuntimeError("a bug")
            return super().begin(item, ended, again)

    executor = ParallelExecutor[int, int](max_concurrency=3)
    found: list[int] = []
    with pytest.raises(RuntimeError, match="a bug"):
        async for outcome in executor.run(range(1, 100), Broken(awaited=1_000)):
            found.append(outcome.item)
    assert sorted(found) == [1, 2, 3, 4]
    assert executor.get_progress().in_flight == 0


async def test_a_limit_of_time_holds_for_what_could_be_begun() -> None:
    executor = ParallelExecutor[int, int](max_concurrency=4, timeout_per_trial_s=10)
    runner = Sending(awaited=1_000)
    assert len([outcome async for outcome in executor.run(range(1, 11), runner)]) == 10
    assert sorted(runner.ran) == list(range(1, 11))


@pytest.mark.parametrize("runner", [double, Sending(awaited=1_000)], ids=["awaited", "begun"])
async def test_cancelled_while_input_is_pulled_it_starts_nothing_more(runner: Runner[int, int]) -> None:
    executor = ParallelExecutor[int, int](max_concurrency=100)

    def items() -> Iterator[int]:
        for item in range(1, 51):
            if item == 4:
                executor.cancel()
            yield item

    assert [outcome async for outcome in executor.run(items(), runner)] == []


async def test_a_bug_in_counting_is_not_theirs_who_bring_the_result() -> None:
    def broken(_: int) -> bool:
        raise RuntimeError("a bug")

    class Told(Sending):
        raised = 0

        def begin(self, item: int, ended: Callable[[int, int], None], again: Callable[[int], None]) -> bool:
            def told(item: int, result: int) -> None:
                try:
                    ended(item, result)
                except RuntimeError:
                    self.raised += 1
                    raise

            return super().begin(item, told, again)

    executor = ParallelExecutor[int, int](max_concurrency=3, is_failure=broken)
    runner = Told(awaited=1_000)
    with pytest.raises(RuntimeError, match="a bug"):
        assert [outcome async for outcome in executor.run(range(1, 1_000), runner)]
    assert not runner.raised

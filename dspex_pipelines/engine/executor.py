"""Runs many items through one runner: bounded, streaming in and out, with progress and cancel.

It knows nothing of trials, gRPC or Dagster: it takes items and an async function, or a `Sender`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from dspex_pipelines.errors import InvalidValue

Item = TypeVar("Item")
Result = TypeVar("Result")


class Outcome(NamedTuple, Generic[Item, Result]):
    """What became of one item: its `result`, or the `error` that its runner raised."""

    item: Item
    result: Result | None
    error: BaseException | None

    @property
    def ok(self) -> bool:
        """Whether the runner returned."""
        return self.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobComplete(Generic[Item, Result]):
    """The one message that a job started by `run_async` ends with.

    `error` is what ended it early: an input that raised, or the cancellation.
    """

    job_id: str
    results: tuple[Outcome[Item, Result], ...]
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is. `total` and `eta_s` are None while the number of items is unknown."""

    total: int | None
    done: int
    failed: int
    in_flight: int
    elapsed_s: float
    rate_per_s: float
    eta_s: float | None


Runner: TypeAlias = Callable[[Item], Awaitable[Result]]
Items: TypeAlias = Iterable[Item] | AsyncIterable[Item]


class Sender(ABC, Generic[Item, Result]):
    """A runner that needs no coroutine for most items: it begins them, and is told of their ends by somebody else."""

    @abstractmethod
    def begin(self, item: Item, ended: Callable[[Item, Result], None], again: Callable[[Item], None]) -> bool:
        """Begin *item*; return False, having done nothing, when it has to be awaited from the start.

        One of the two is called once: *ended* with what came of it, or *again* when it has to be awaited after all.
        """

    @abstractmethod
    def drop(self) -> None:
        """What was begun and has not ended is not wanted any more: end it, and call nothing."""

    @abstractmethod
    async def __call__(self, item: Item) -> Result:
        """Run *item* from beginning to end."""


def _never(*_: object) -> bool:
    return False


class ParallelExecutor(Generic[Item, Result]):
    """At most `max_concurrency` items in flight; input is pulled only as there is room.

    A runner that raises is an outcome, one that takes longer than *timeout_per_trial_s* is a `TimeoutError`;
    with it every item is awaited, a `Sender`'s too.
    *is_failure* says which returned results count as failed in the progress. With *hold_outcomes* an outcome keeps the
    place of its item until `let_go` is told of it: at most `max_concurrency` items are in flight or held. One executor
    makes one run at a time (`RuntimeError` otherwise); a second run starts its progress anew.
    """

    def __init__(
        self,
        *,
        max_concurrency: int,
        timeout_per_trial_s: float | None = None,
        is_failure: Callable[[Result], bool] = _never,
        hold_outcomes: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(max_concurrency, bool) or max_concurrency < 1:
            raise InvalidValue(field="max_concurrency", value=max_concurrency, fix="give an integer of 1 or more")
        if timeout_per_trial_s is not None and not timeout_per_trial_s > 0:
            raise InvalidValue(field="timeout_per_trial_s", value=timeout_per_trial_s, fix="give seconds above 0")
        self.max_concurrency = max_concurrency
        self._timeout_s = timeout_per_trial_s
        self._is_failure = is_failure
        self._hold_outcomes = hold_outcomes
        self._clock = clock
        self._run: _Run[Item, Result] | None = None
        self._jobs: set[asyncio.Task[None]] = set()

    def get_progress(self) -> Progress:
        """Return the counts of the current (or last) run; costs the same at any size."""
        run = self._run
        if run is None:
            return Progress(total=None, done=0, failed=0, in_flight=0, elapsed_s=0.0, rate_per_s=0.0, eta_s=None)
        elapsed = max(0.0, (run.ended if run.ended is not None else self._clock()) - run.started)
        rate = run.done / elapsed if elapsed > 0 else 0.0
        eta = max(0, run.total - run.done) / rate if run.total is not None and rate > 0 else None
        return Progress(
            total=run.total,
            done=run.done,
            failed=run.failed,
            in_flight=run.in_flight,
            elapsed_s=elapsed,
            rate_per_s=rate,
            eta_s=eta,
        )

    def cancel(self) -> None:
        """Stop the run: no more input is pulled, runners in flight are cancelled, the iterator ends."""
        if self._run is not None:
            self._run.cancel()

    def stop(self) -> None:
        """Pull no more input; what is in flight ends and is yielded, then the iterator ends."""
        if self._run is not None:
            self._run.stop()

    def let_go(self, count: int) -> None:
        """The consumer is done with so many outcomes that were held: as many items may start."""
        if self._run is not None:
            self._run.let_go(count)

    async def run(
        self, items: Items[Item], runner: Runner[Item, Result], *, total: int | None = None
    ) -> AsyncGenerator[Outcome[Item, Result], None]:
        """Yield one outcome per item, as they finish. See `run_batches` for what else holds."""
        async with aclosing(self.run_batches(items, runner, total=total)) as batches:
            async for batch in batches:
                for outcome in batch:
                    yield outcome

    async def run_batches(
        self,
        items: Items[Item],
        runner: Runner[Item, Result],
        *,
        total: int | None = None,
        prepare: Callable[[], bool] = _never,
    ) -> AsyncGenerator[list[Outcome[Item, Result]], None]:
        """Yield lists of outcomes: whatever finished since the last look.

        Each time that there is no room, *prepare* is called once in each turn of the loop until there is, or it returns
        False: it does some of what the next items need, and says whether there is more of that. What it raises is as if
        the input had.

        An input that raises lets what is in flight finish and be yielded, then its exception comes out here.
        Closing the generator cancels what is in flight; after a ``break`` that is the caller's to do
        (`contextlib.aclosing`). No item starts while `max_concurrency` outcomes wait for a slow consumer.
        """
        run = self._begin(total)
        async with aclosing(run.outcomes(items, self._bounded(runner), prepare)) as batches:
            async for batch in batches:
                yield batch

    def run_async(
        self,
        items: Items[Item],
        runner: Runner[Item, Result],
        *,
        on_complete: Callable[[JobComplete[Item, Result]], None],
        total: int | None = None,
    ) -> str:
        """Start a run in the background and return its job id at once.

        *on_complete* is called exactly once, with a `JobComplete` that carries every outcome there is.
        """
        job_id = uuid.uuid4().hex
        run = self._begin(total)
        results: list[Outcome[Item, Result]] = []

        async def job() -> None:
            async with aclosing(run.outcomes(items, self._bounded(runner))) as batches:
                async for batch in batches:
                    results.extend(batch)

        def ended(task: asyncio.Task[None]) -> None:
            self._jobs.discard(task)
            run.ended = self._clock() if run.ended is None else run.ended
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None and run.cancelled:
                error = asyncio.CancelledError("the job was cancelled")
            on_complete(JobComplete(job_id=job_id, results=tuple(results), error=error))

        task = asyncio.get_running_loop().create_task(job())
        self._jobs.add(task)
        # A callback, not the job's last line: a task cancelled before its first step has none.
        task.add_done_callback(ended)
        return job_id

    def _begin(self, total: int | None) -> _Run[Item, Result]:
        if self._run is not None and self._run.ended is None:
            msg = "this executor has a run already; close its iterator first, or make another executor"
            raise RuntimeError(msg)
        self._run = _Run(
            total=total,
            max_concurrency=self.max_concurrency,
            is_failure=self._is_failure,
            hold_outcomes=self._hold_outcomes,
            clock=self._clock,
        )
        return self._run

    def _bounded(self, runner: Runner[Item, Result]) -> Runner[Item, Result]:
        timeout_s = self._timeout_s
        if timeout_s is None:
            return runner

        async def run(item: Item) -> Result:
            async with asyncio.timeout(timeout_s):
                return await runner(item)

        return run


class _Run(Generic[Item, Result]):
    """One run: its counters, what is in flight, and the outcomes that nobody has taken yet."""

    def __init__(
        self,
        *,
        total: int | None,
        max_concurrency: int,
        is_failure: Callable[[Result], bool],
        hold_outcomes: bool,
        clock: Callable[[], float],
    ) -> None:
        self.total = total
        self.done = self.failed = 0
        self.cancelled = False
        self.started = clock()
        self.ended: float | None = None
        self._max_concurrency = max_concurrency
        self._is_failure = is_failure
        self._hold_outcomes = hold_outcomes
        self._clock = clock
        self._runner: Runner[Item, Result]
        self._feeder: asyncio.Task[None] | None = None
        self._begun = 0
        """Items that are in flight without a task of their own."""
        self._awaited: set[asyncio.Task[None]] = set()
        self._held = 0
        """Outcomes that the consumer has not taken, or not let go."""
        self._finished: list[Outcome[Item, Result]] = []
        self._room = asyncio.Event()
        self._wake = asyncio.Event()
        self._error: BaseException | None = None
        self._halted = False
        """Whether no more input is pulled."""

    @property
    def in_flight(self) -> int:
        return self._begun + len(self._awaited)

    def cancel(self) -> None:
        self.cancelled = self._halted = True
        self._abandon()

    def stop(self) -> None:
        self._halted = True
        self._room.set()

    def let_go(self, count: int) -> None:
        self._held -= count
        self._room.set()

    async def outcomes(
        self, items: Items[Item], runner: Runner[Item, Result], prepare: Callable[[], bool] = _never
    ) -> AsyncGenerator[list[Outcome[Item, Result]], None]:
        source = _Source(items)
        self._runner = runner
        try:
            if not self.cancelled:
                self._feeder = asyncio.create_task(self._feed(source, prepare))
                self._feeder.add_done_callback(self._fed)
            while self._finished or self._feeder is not None or self.in_flight:
                if not self._finished:
                    await self._wake.wait()
                self._wake.clear()
                if batch := self._finished:
                    self._finished = []
                    if not self._hold_outcomes:
                        self.let_go(len(batch))
                    yield batch
            if self._error is not None:
                raise self._error
        finally:
            left = [*self._awaited, *([] if self._feeder is None else [self._feeder])]
            self._abandon()
            await asyncio.gather(*left, return_exceptions=True)
            self.ended = self._clock()
            await source.close()

    def _abandon(self) -> None:
        if self._feeder is not None:
            self._feeder.cancel()
        for task in self._awaited:
            task.cancel()
        if self._begun:
            assert isinstance(self._runner, Sender)
            self._runner.drop()
            self._begun = 0
        self._wake.set()

    async def _feed(self, source: _Source[Item], prepare: Callable[[], bool]) -> None:
        """Start items as there is room for them."""
        begin = self._runner.begin if isinstance(self._runner, Sender) else _never
        # Without a coroutine for each item where there is nothing to await.
        take = source.take
        ended, again, room, awaited = self._ended, self._again, self._room, self._awaited
        most, hold_outcomes = self._max_concurrency, self._hold_outcomes
        while not self._halted:
            in_flight, held = self._begun + len(awaited), self._held
            if (held + in_flight if hold_outcomes else max(held, in_flight)) >= most:
                room.clear()
                while not room.is_set() and prepare():
                    await asyncio.sleep(0)
                await room.wait()
                continue
            try:
                item = await source.next() if take is None else take()
            except (StopIteration, StopAsyncIteration):
                return
            if self.cancelled:
                return  # while the input was asked
            self._begun += 1
            try:
                if not begin(item, ended, again):
                    again(item)
            except BaseException:
                self._begun -= 1
                raise

    def _fed(self, feeder: asyncio.Task[None]) -> None:
        self._feeder = None
        # The input's exception: what is in flight ends before it comes out.
        if not feeder.cancelled():
            self._note(feeder.exception())
        self._wake.set()

    def _ended(self, item: Item, result: Result) -> None:
        self._begun -= 1
        self._finish(item, result, None)

    def _again(self, item: Item) -> None:
        self._begun -= 1
        task = asyncio.create_task(self._await(item))
        self._awaited.add(task)
        task.add_done_callback(self._awaited_ended)

    async def _await(self, item: Item) -> None:
        this = asyncio.current_task()
        assert this is not None
        result: Result | None = None
        error: BaseException | None = None
        try:
            result = await self._runner(item)
        except asyncio.CancelledError as caught:
            if this.cancelling():
                raise
            error = caught  # the runner's own: something that it awaited was cancelled
        except Exception as caught:  # noqa: BLE001 - a raising runner is an outcome
            error = caught
        self._awaited.discard(this)
        self._finish(item, result, error)

    def _awaited_ended(self, task: asyncio.Task[None]) -> None:
        self._awaited.discard(task)
        if not task.cancelled():
            self._note(task.exception())
        self._wake.set()

    def _finish(self, item: Item, result: Result | None, error: BaseException | None) -> None:
        self.done += 1
        self._held += 1
        try:
            if error is not None or self._is_failure(result):  # type: ignore[arg-type]
                self.failed += 1
        except Exception as bug:  # noqa: BLE001 - ours, which must end the run: not whoever has brought the result
            self._note(bug)
        if not self._hold_outcomes:
            self._room.set()
        if not self._finished:
            self._wake.set()
        self._finished.append(tuple.__new__(Outcome, (item, result, error)))

    def _note(self, error: BaseException | None) -> None:
        if error is not None and self._error is None:
            self._error = error
            self._halted = True
            self._room.set()


class _Source(Generic[Item]):
    """Both kinds of iterables: `take` returns the next item; it is None where that has to be awaited, of `next`."""

    def __init__(self, items: Items[Item]) -> None:
        self._iterator: Any
        self.take: Callable[[], Item] | None = None
        if isinstance(items, AsyncIterable):
            self._iterator = aiter(items)
            self.next = self._iterator.__anext__
        else:
            self._iterator = iter(items)
            self.take = self._iterator.__next__

    async def close(self) -> None:
        """Let a generator run its `finally`."""
        if hasattr(self._iterator, "aclose"):
            await self._iterator.aclose()
        elif hasattr(self._iterator, "close"):
            self._iterator.close()

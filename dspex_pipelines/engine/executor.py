"""Runs many items through one runner: bounded, streaming in and out, with progress and cancel.

It knows nothing of trials, gRPC or Dagster: it takes items and an async function.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar, cast

from dspex_pipelines.errors import InvalidValue

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: its `result`, or the `error` that its runner raised."""

    item: Item
    result: Result | None
    error: Exception | None

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


def _never(_: object) -> bool:
    return False


class ParallelExecutor(Generic[Item, Result]):
    """At most `max_concurrency` items in flight; input is pulled only as there is room.

    `is_failure` says which returned results count as failed in the progress. One executor makes one run at
    a time; a second `run` starts its progress anew.
    """

    def __init__(
        self,
        *,
        max_concurrency: int,
        timeout_per_trial_s: float | None = None,
        is_failure: Callable[[Result], bool] = _never,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(max_concurrency, bool) or max_concurrency < 1:
            raise InvalidValue(field="max_concurrency", value=max_concurrency, fix="give an integer of 1 or more")
        if timeout_per_trial_s is not None and not timeout_per_trial_s > 0:
            raise InvalidValue(field="timeout_per_trial_s", value=timeout_per_trial_s, fix="give seconds above 0")
        self.max_concurrency = max_concurrency
        self._timeout_s = timeout_per_trial_s
        self._is_failure = is_failure
        self._clock = clock
        self._begin(None)
        self._jobs: dict[str, asyncio.Task[JobComplete[Item, Result]]] = {}
        self._run_tasks: set[asyncio.Task[None]] = set()

    def _begin(self, total: int | None) -> None:
        self._total = total
        self._done = self._failed = self._in_flight = 0
        self._started: float | None = None
        self._ended: float | None = None
        self._cancelled = False
        self._wake = asyncio.Event()

    def get_progress(self) -> Progress:
        """Return the counts of the current (or last) run; costs the same at any size."""
        now = self._ended if self._ended is not None else self._clock()
        elapsed = 0.0 if self._started is None else max(0.0, now - self._started)
        rate = self._done / elapsed if elapsed > 0 else 0.0
        eta = None
        if self._total is not None and rate > 0:
            eta = max(0, self._total - self._done) / rate
        return Progress(
            total=self._total,
            done=self._done,
            failed=self._failed,
            in_flight=self._in_flight,
            elapsed_s=elapsed,
            rate_per_s=rate,
            eta_s=eta,
        )

    def cancel(self) -> None:
        """Stop: no more input is pulled, runners in flight are cancelled, the iterator ends."""
        self._cancelled = True
        for task in self._run_tasks:
            task.cancel()
        self._wake.set()

    async def run(
        self, items: Items[Item], runner: Runner[Item, Result], *, total: int | None = None
    ) -> AsyncIterator[Outcome[Item, Result]]:
        """Yield one outcome per item, as they finish. See `run_batches` for what else holds."""
        batches = self.run_batches(items, runner, total=total)
        try:
            async for batch in batches:
                for outcome in batch:
                    yield outcome
        finally:
            await cast("AsyncGeneratorLike", batches).aclose()

    async def run_batches(
        self, items: Items[Item], runner: Runner[Item, Result], *, total: int | None = None
    ) -> AsyncIterator[list[Outcome[Item, Result]]]:
        """Yield lists of outcomes: whatever finished since the last look.

        A runner that raises is an outcome. An input that raises lets what is in flight finish and be
        yielded, then its exception comes out here. Leaving early cancels what is in flight. At most
        `max_concurrency` finished outcomes wait for a slow consumer.
        """
        self._begin(total)
        self._started = self._clock()
        source = _Source(items)
        finished: deque[Outcome[Item, Result]] = deque()
        wake = self._wake
        run_item = self._bounded(runner)
        input_error: list[BaseException] = []

        async def lane() -> None:
            # Lanes outlive items: a task per item would cost three times as much.
            while not self._cancelled:
                while len(finished) >= self.max_concurrency:
                    room = asyncio.get_running_loop().create_future()
                    waiting.append(room)
                    await room
                try:
                    item = await source.next()
                except StopAsyncIteration:
                    return
                except Exception as error:  # noqa: BLE001 - handed to the consumer below
                    if not input_error:
                        input_error.append(error)
                    return
                self._in_flight += 1
                try:
                    result = await run_item(item)
                except Exception as error:  # noqa: BLE001 - a raising runner is an outcome
                    outcome: Outcome[Item, Result] = Outcome(item=item, result=None, error=error)
                    self._failed += 1
                else:
                    outcome = Outcome(item=item, result=result, error=None)
                    if self._is_failure(result):
                        self._failed += 1
                finally:
                    self._in_flight -= 1
                self._done += 1
                finished.append(outcome)
                wake.set()

        waiting: deque[asyncio.Future[None]] = deque()
        lanes: set[asyncio.Task[None]] = set()
        self._run_tasks = lanes

        def ended(task: asyncio.Task[None]) -> None:
            lanes.discard(task)
            # What escapes a lane is a bug of ours; it must end the run, not thin it out.
            if not task.cancelled() and (error := task.exception()) and not input_error:
                input_error.append(error)
            wake.set()

        count = self.max_concurrency if total is None else max(1, min(self.max_concurrency, total))
        try:
            for _ in range(count):
                task = asyncio.create_task(lane())
                lanes.add(task)
                task.add_done_callback(ended)
            while lanes or finished:
                if not finished:
                    await wake.wait()
                wake.clear()
                if not finished:
                    continue
                batch = list(finished)
                finished.clear()
                for _ in range(min(len(batch), len(waiting))):
                    room = waiting.popleft()
                    if not room.done():
                        room.set_result(None)
                yield batch
            if input_error:
                raise input_error[0]
        finally:
            self._ended = self._clock()
            left = list(lanes)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await source.close()

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

        async def job() -> JobComplete[Item, Result]:
            results: list[Outcome[Item, Result]] = []
            error: BaseException | None = None
            try:
                async for batch in self.run_batches(items, runner, total=total):
                    results.extend(batch)
            except (Exception, asyncio.CancelledError) as caught:  # noqa: BLE001 - told, not lost
                error = caught
            if error is None and self._cancelled:
                error = asyncio.CancelledError("the job was cancelled")
            complete = JobComplete(job_id=job_id, results=tuple(results), error=error)
            on_complete(complete)
            return complete

        task = asyncio.get_running_loop().create_task(job())
        self._jobs[job_id] = task
        task.add_done_callback(lambda _: self._jobs.pop(job_id, None))
        return job_id

    def _bounded(self, runner: Runner[Item, Result]) -> Runner[Item, Result]:
        timeout_s = self._timeout_s
        if timeout_s is None:
            return runner

        async def run(item: Item) -> Result:
            async with asyncio.timeout(timeout_s):
                return await runner(item)

        return run


class _Source(Generic[Item]):
    """One `next` over both kinds of iterables; ends for good at the first exception."""

    def __init__(self, items: Items[Item]) -> None:
        self._lock: asyncio.Lock | None = None
        self._over = False
        if isinstance(items, AsyncIterable):
            self._asynchronous = aiter(items)
            self._synchronous = None
            self._lock = asyncio.Lock()
        else:
            self._asynchronous = None
            self._synchronous = iter(items)

    async def next(self) -> Item:
        if self._over:
            raise StopAsyncIteration
        if self._synchronous is not None:
            try:
                return next(self._synchronous)
            except StopIteration:
                self._over = True
                raise StopAsyncIteration from None
            except BaseException:
                self._over = True
                raise
        assert self._lock is not None
        assert self._asynchronous is not None
        async with self._lock:
            if self._over:
                raise StopAsyncIteration
            try:
                return await anext(self._asynchronous)
            except BaseException:
                self._over = True
                raise

    async def close(self) -> None:
        """Let a generator run its `finally`."""
        self._over = True
        if self._synchronous is not None:
            close = getattr(self._synchronous, "close", None)
            if close is not None:
                close()
        elif hasattr(self._asynchronous, "aclose"):
            await cast("AsyncGeneratorLike", self._asynchronous).aclose()


class AsyncGeneratorLike:
    """What an async generator offers beyond iteration."""

    async def aclose(self) -> None:
        """Run the generator's `finally`."""

"""Writes outcomes in groups, in a thread of its own, while the trials go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from types import TracebackType

from dspex_pipelines.engine.journal.rows import Entry

GROUP = 1_000
"""Outcomes that are worth a transaction of their own."""
GROUP_S = 0.0025
"""From the start of one transaction to that of the next, while fewer outcomes than a group wait; less where
`GROUP_SHARE` allows it."""
GROUP_SHARE = 0.1
"""Of a core, that recording may take to come sooner than that. Until it is durable an outcome takes the place of a
running trial, and a transaction costs 30 to 150 µs besides its rows."""
_TICK_S = 0.001
"""The least that uvloop's timers tell from nothing, and the steps of its clock."""
MOST_WAITING = 8 * GROUP
"""Outcomes that may wait for a slow disk before whoever brings more has to."""


class Recorder:
    """One group after the other, in order: *group* outcomes, or what has come in since the one before.

    *record_now* makes a group durable on the spot and returns True, unless it had to wait for something; what it leaves
    *record* does, in a thread. On the loop, *durable* is told of each group that is, and *failed* that
    one is not: nothing is written any more then. Leaving writes what still waits, whatever it is left for, and raises
    what any of them did.
    """

    def __init__(
        self,
        record: Callable[[list[Entry]], None],
        *,
        durable: Callable[[list[Entry]], None],
        failed: Callable[[], None],
        record_now: Callable[[list[Entry]], bool] = lambda _: False,
        group: int = GROUP,
    ) -> None:
        self._least = min(group, GROUP)
        self._record = record
        self._record_now = record_now
        self._durable = durable
        self._failed = failed
        self._waiting: list[Entry] = []
        self._group: list[Entry] = []
        self._writing: Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: BaseException | None = None
        self._moved: asyncio.Future[None] | None = None
        self._started = 0.0
        self._apart_s = GROUP_S
        """From the start of the last transaction to that of the next."""

    def __enter__(self) -> Recorder:
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dspex-recorder")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # No await: this is also how a cancellation leaves, and what is done must be kept.
        self._stop_timer()
        writing, self._writing = self._writing, None
        with self._thread:
            if writing is not None:
                self._settle(writing)
            if self._waiting and self._error is None:
                self._group, self._waiting = self._waiting, []
                if not self._is_recorded_now():
                    self._settle(self._thread.submit(self._record, self._group))
        if self._error is not None:
            raise self._error

    async def add(self, entries: Iterable[Entry]) -> None:
        """Take *entries*; waits while too many wait already."""
        self._waiting.extend(entries)
        self._look()
        while len(self._waiting) >= MOST_WAITING and self._error is None:
            await self._written_next()

    async def flush(self) -> None:
        """Write what waits now, and wait until it is written."""
        while (self._waiting or self._writing is not None) and self._error is None:
            if self._writing is None:
                self._start()
            if self._writing is not None:
                await self._written_next()

    async def _written_next(self) -> None:
        self._moved = self._loop.create_future()
        await self._moved

    def _look(self) -> None:
        """Start a group if there is one, or see to it that there will be."""
        if self._writing is not None or self._error is not None:
            return
        if len(self._waiting) >= self._least:
            self._start()
        elif self._waiting and self._timer is None:
            self._timer = self._loop.call_at(self._started + self._apart_s, self._start)

    def _start(self) -> None:
        self._stop_timer()
        self._started = self._loop.time()
        self._group, self._waiting = self._waiting, []
        began = perf_counter()
        if self._is_recorded_now():
            self._apart_s = min(GROUP_S, max(_TICK_S, (perf_counter() - began) / GROUP_SHARE))
            self._tell()
            return
        self._writing = writing = self._thread.submit(self._record, self._group)
        writing.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._written, done))

    def _written(self, writing: Future[None]) -> None:
        if self._writing is not writing:
            return  # who left has waited for it
        self._writing = None
        self._settle(writing)
        self._tell()
        self._look()

    def _tell(self) -> None:
        """Say on the loop that it has failed, or that there is room."""
        if self._error is not None:
            self._failed()
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)

    def _is_recorded_now(self) -> bool:
        try:
            if not self._record_now(self._group):
                return False
            group, self._group = self._group, []
            self._durable(group)
        except BaseException as error:  # noqa: BLE001 - raised on leaving
            self._error = error
        return True

    def _settle(self, writing: Future[None]) -> None:
        group, self._group = self._group, []
        try:
            writing.result()
            self._durable(group)
        except BaseException as error:  # noqa: BLE001 - raised on leaving
            self._error = error

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

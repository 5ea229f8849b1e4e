"""The threads that run what is not a coroutine."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable

from dspex_pipelines.worker.forked import lasts


class CannotStart(Exception):
    """There is no thread, or no process, to run a trial in; it has not begun."""


class Threads:
    """Daemon threads that grow as they are needed: a hung one keeps nobody from leaving.

    What a piece of work raises goes to *broken*, and its thread is used again.
    """

    def __init__(self, *, most: int, broken: Callable[[BaseException], None]) -> None:
        self._most = most
        self._broken = broken
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._started = 0
        self._idle = 0
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def run(self, work: Callable[[], None]) -> None:
        """Run *work* in a thread; raises `CannotStart` when none is idle and the system gives no other."""
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            elif self._started < self._most:
                name = f"program-{next(self._numbers)}"
                try:
                    threading.Thread(target=self._serve, name=name, daemon=True).start()
                except (RuntimeError, MemoryError) as error:
                    raise CannotStart(f"no thread could be started: {error}") from error
                self._started += 1
        self._work.put(work)

    def _serve(self) -> None:
        lasts()
        while True:
            work = self._work.get()
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - told
                self._broken(error)
            # Not held by the thread until its next one.
            del work
            with self._lock:
                self._idle += 1

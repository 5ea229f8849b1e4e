"""Which thread of a worker is running which trial, in memory that the bridge can read while the worker cannot answer.

A table of pairs (the system's thread id, the attempt it runs or 0), in an anonymous file that the worker says the
descriptor of when it attaches.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import stat
import threading
import types
import weakref
from collections.abc import Awaitable, Generator
from typing import Any

PAIRS = 4096
_BYTES = 16 * PAIRS


class Marks:
    """The table, as its worker writes it. Threads beyond its size are not in it."""

    def __init__(self) -> None:
        # Not on every system; without it nobody can look, and suspects are found by halving.
        self.fd = os.memfd_create("dspex-marks") if hasattr(os, "memfd_create") else -1
        if self.fd >= 0:
            os.ftruncate(self.fd, _BYTES)
        self._cells = memoryview(mmap.mmap(self.fd, _BYTES)).cast("Q")
        self._indices = itertools.count()
        self._own = threading.local()

    def mark(self, attempt_id: int) -> None:
        """Say what this thread runs from now on; 0 for nothing."""
        self._cells[self._index()] = attempt_id

    def of(self, thread: int) -> int:
        """Return what the thread of that number in the system runs; 0 for nothing."""
        cells = self._cells
        return next((cells[index + 1] for index in range(0, 2 * PAIRS, 2) if cells[index] == thread), 0)

    @types.coroutine
    def marked(self, awaitable: Awaitable[Any], attempt_id: int) -> Generator[Any, Any, Any]:
        """Return what *awaitable* returns, with this thread marked while it is not waiting."""
        steps = awaitable.__await__()
        # All its steps are taken by the thread of one loop.
        cells, index = self._cells, self._index()
        value, error = None, None
        while True:
            cells[index] = attempt_id
            try:
                waits_for = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                cells[index] = 0
            value, error = None, None
            try:
                value = yield waits_for
            except BaseException as thrown:  # noqa: BLE001 - a cancellation, for the awaitable to deal with
                error = thrown

    def _index(self) -> int:
        """Return where this thread writes."""
        try:
            return self._own.index
        except AttributeError:
            index = self._own.index = 2 * min(next(self._indices), PAIRS - 1) + 1
            self._cells[index - 1] = threading.get_native_id()
            return index


class MarksOfAnother:
    """The table of another process on this machine, which may do with it what it likes: it is read, never mapped."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    @classmethod
    def open(cls, pid: int, fd: int) -> MarksOfAnother | None:
        """Return the table behind a descriptor of process *pid*; None where it cannot be had, or is no such table."""
        if fd <= 0:
            return None
        with contextlib.suppress(OSError, ValueError):
            path = f"/proc/{pid}/fd/{fd}"
            # Looked at before it is opened: opening a pipe may wait, and opening a device may do something.
            if _is_table(os.stat(path)):  # noqa: PTH116 - of an anonymous file
                own = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
                if _is_table(os.fstat(own)):
                    return cls(own)
                os.close(own)
        return None

    def running(self) -> dict[int, int]:
        """Return thread id to attempt, of the threads that run one."""
        try:
            cells = memoryview(os.pread(self._fd, _BYTES, 0)).cast("Q")
        except (OSError, TypeError):
            # Cut off since.
            return {}
        return {cells[index]: cells[index + 1] for index in range(0, len(cells) - 1, 2) if cells[index + 1]}


def _is_table(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_size == _BYTES

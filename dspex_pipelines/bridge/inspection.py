"""Looks at a worker on this machine that has gone silent, for the trial that keeps it so.

Native code that holds the interpreter's lock stops every other thread of its process, the wire's included. Of the
threads that run a trial, the one that computes is the one that holds the lock; where none computes, it is one of those
that were not seen to wait for a lock.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from pathlib import Path

from dspex_pipelines.wire.marks import MarksOfAnother

LOOK_S = 0.2
_GLANCES = 20
_LEAST_TICKS = 3
"""CPU time of a thread that computes while it is looked at, in the kernel's hundredths of a second."""


def suspects(pid: int, marks: MarksOfAnother | None) -> list[int]:
    """Return the attempts that may hold the interpreter of process *pid*; empty for no idea. Takes `LOOK_S`."""
    running = marks.running() if marks is not None else {}
    before = {thread: _ticks(pid, thread) for thread in running}
    without_lock: set[int] = set()
    for _ in range(_GLANCES):
        time.sleep(LOOK_S / _GLANCES)
        # Who waits for the lock wakes every few milliseconds to ask for it: a single glance can miss the waiting.
        without_lock.update(thread for thread in running if "futex" in _waits_in(pid, thread))
    used = {thread: _ticks(pid, thread) - ticks for thread, ticks in before.items()}
    most = max(used.values(), default=0)
    if most >= _LEAST_TICKS:
        return [running[thread] for thread, ticks in used.items() if ticks * 2 >= most]
    return [attempt for thread, attempt in running.items() if thread not in without_lock]


def kill(pid: int, worker_id: str) -> bool:
    """Kill process *pid* if it is that worker, here; return whether it was."""
    with contextlib.suppress(OSError):
        # The pid is what the worker said: it may be of another machine or container, or of somebody else.
        said = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if (b"--worker-id", worker_id.encode()) in itertools.pairwise(said):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def _ticks(pid: int, thread: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return 0


def _waits_in(pid: int, thread: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/task/{thread}/wchan").read_text()
    return ""

"""Processes that programs fork off this one: none goes on as if it were this one, and none outlives it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import suppress

from dspex_pipelines.wire.processes import die_with_parent

_thread = threading.local()
_arranged = set[int]()
"""The process whose forks end with it, once that is arranged."""


def end_if_forked(process: int) -> None:
    """End this process, if it is not *process* but one that a program has forked off it, and has had come back.

    The trial is that of the process it was sent to; there are no threads here to do anything for it.
    """
    if os.getpid() != process:
        os._exit(0 if sys.exception() is None else 1)


def lasts() -> None:
    """Say of this thread that it ends with its process, and not before."""
    _thread.lasts = True


def end_forks_with_this_process() -> None:
    """Have what is forked off this process from now on end when it does, and at once when it comes back to this loop.

    To be called in the main thread. The kernel looks at the thread that forks, so it is only asked where that `lasts`:
    a program may end a thread of its own, and have meant what that has forked to stay. What forks fork is theirs.
    """
    process, main, loop = os.getpid(), threading.get_ident(), None
    if process in _arranged:
        return
    _arranged.add(process)
    lasts()
    with suppress(RuntimeError):
        loop = asyncio.get_running_loop()

    def begin() -> None:
        if process not in _arranged:
            return
        _arranged.clear()
        if getattr(_thread, "lasts", False):
            die_with_parent()
            if os.getppid() != process:
                # It ended before the kernel was asked.
                os._exit(1)
        if loop is not None and threading.get_ident() == main and not loop.is_closed():
            loop.call_soon(os._exit, 0)

    os.register_at_fork(after_in_child=begin)

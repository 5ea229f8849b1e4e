"""Where the program of a replay is: its own lines, without those that lead to it."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import dspex_pipelines
from dspex_pipelines import worker

MOST_TOLD = 5
"""Threads and tasks of the program's own that are told beside the one that runs it."""
_WORKER = str(Path(worker.__file__).parent)
_OURS = tuple(
    str(Path(dspex_pipelines.__file__).parent / name) for name in ("cli", "engine", "model", "wire", "worker")
)
"""Not the whole package: programs are shipped in it too."""
_STANDARD = str(Path(threading.__file__).parent)
_INSTALLED = ("site-packages", "dist-packages")
_Stack: TypeAlias = list[tuple[FrameType, int]]
"""Frames and the lines they are at, the outermost first."""


def program_lines(loop: asyncio.AbstractEventLoop | None) -> str:
    """Return where the program is, most recent call last: the thread or task of the trial, then what it has started.

    *loop* is the one that the trial runs on. Empty where nothing is seen to run it.
    """
    stacks = [*_threads(), *(_tasks(loop) if loop is not None else ())]
    programs = [found for stack in stacks if (found := _program(stack))]
    started = [stack for stack in stacks if not _is_led_by_worker(stack) and any(_is_own(one) for one in stack)]
    if not programs and not started:
        return ""
    told = ["".join(_lines(one)) for one in (*programs, *map(_shown, started[:MOST_TOLD]))]
    more = [f"  and {len(started) - MOST_TOLD:,} more\n"] if len(started) > MOST_TOLD else []
    return "  beside it:\n".join(told) + "".join(more)


def _threads() -> Iterator[_Stack]:
    for thread, frame in sys._current_frames().items():  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - there is no other
        stack = list(traceback.walk_stack(frame))[::-1]
        # Below the main thread is the command; a trial that holds the loop up is in it too.
        if thread != threading.get_ident() and (thread != threading.main_thread().ident or _is_led_by_worker(stack)):
            yield stack


def _tasks(loop: asyncio.AbstractEventLoop) -> Iterator[_Stack]:
    """Yield where those that wait are: they are on no thread's stack."""
    for task in asyncio.all_tasks(loop):
        stack: _Stack = []
        waits: Any = task.get_coro()
        while waits is not None:
            frame = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None)
            if frame is None:
                break
            stack.append((frame, frame.f_lineno))
            inner = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None)
            # `Marks.marked` takes the steps of what it is given itself, so that it is not seen to wait for it.
            waits = inner or (frame.f_locals.get("awaitable") if _file(stack[-1]).startswith(_OURS) else None)
        yield stack


def _program(stack: _Stack) -> _Stack:
    """Return what of a stack the worker has called."""
    return _shown([*dropwhile(lambda one: not _file(one).startswith(_WORKER), stack)])


def _shown(stack: _Stack) -> _Stack:
    """Return a stack without what leads to its first line of others than Python and this package, and without ours."""
    called = dropwhile(lambda one: _is_ours(one) or _is_standard(one), stack)
    return [one for one in called if not _is_ours(one)]


def _is_led_by_worker(stack: _Stack) -> bool:
    return any(_file(one).startswith(_WORKER) for one in stack)


def _is_own(one: tuple[FrameType, int]) -> bool:
    return not (_is_ours(one) or _is_standard(one) or any(name in _file(one) for name in _INSTALLED))


def _is_ours(one: tuple[FrameType, int]) -> bool:
    return _file(one).startswith(_OURS)


def _is_standard(one: tuple[FrameType, int]) -> bool:
    file = _file(one)
    return file.startswith("<frozen ") or (file.startswith(_STANDARD) and not any(name in file for name in _INSTALLED))


def _file(one: tuple[FrameType, int]) -> str:
    return one[0].f_code.co_filename


def _lines(stack: _Stack) -> list[str]:
    return traceback.StackSummary.extract(iter(stack)).format()

"""The event loop under everything that sends frames: uvloop, which takes a tenth off a trial's cost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar

import uvloop

Result = TypeVar("Result")

YOUNG_OBJECTS = 20_000
"""Allocations before the collector looks: a trial makes dozens of objects and hardly a cycle."""
ENDING = (signal.SIGINT, signal.SIGTERM)


class ParentProcess(Protocol):
    """What `multiprocessing` says of the process that made this one."""

    @property
    def pid(self) -> int | None:
        """Its number."""
        ...

    @property
    def sentinel(self) -> int:
        """A descriptor that can be read once it is gone, and so is whoever has inherited its other end."""
        ...


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run *main* on a new loop and return what it does, like `asyncio.run`.

    A signal that would end the process cancels *main* instead, which so gets to keep what it has; then the signal does
    what it would have done. When the process that made this one by `multiprocessing` is gone, that is like SIGTERM: a
    run that was killed leaves no step behind that goes on.
    """
    received: list[signal.Signals] = []
    try:
        with rarely_collected(), _handlers_kept():
            return uvloop.run(_cancelled_by_signals(main, received))
    finally:
        if received:
            # Its handler raises, or ends the process; where it lets the signal pass, the cancellation comes out.
            signal.raise_signal(received[0])


@contextlib.contextmanager
def rarely_collected() -> Generator[None]:
    """Have the garbage collector look after as many allocations as suit what makes many objects and hardly a cycle."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def run_process(
    main: Coroutine[Any, Any, Result], *, loop: Callable[[], uvloop.Loop] = uvloop.new_event_loop
) -> Result:
    """Run *main* for a process of the pool's own, which handles its signals itself.

    What is imported by now is never looked at by the collector again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    return uvloop.run(main, loop_factory=loop)


async def _cancelled_by_signals(main: Coroutine[Any, Any, Result], received: list[signal.Signals]) -> Result:
    """Run *main*; in the main thread, where alone signals arrive, they are noted and cancel it."""
    if threading.current_thread() is threading.main_thread():
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel(number: signal.Signals) -> None:
            received.append(number)
            task.cancel()

        for number in ENDING:
            loop.add_signal_handler(number, cancel, number)
        if (parent := _parent()) is not None:
            watched = _gone(parent)

            def orphaned() -> None:
                loop.remove_reader(watched)
                cancel(signal.SIGTERM)

            loop.add_reader(watched, orphaned)
    return await main


def _gone(parent: ParentProcess) -> int:
    """Return a descriptor that can be read once the parent is gone."""
    # Of forked siblings, later ones hold the other end of the sentinel of earlier ones.
    if sys.platform == "linux" and parent.pid is not None:
        with contextlib.suppress(OSError):
            return os.pidfd_open(parent.pid)
    return parent.sentinel


def _parent() -> ParentProcess | None:
    """Return the process that made this one by `multiprocessing`; None where it was started otherwise."""
    # Where that was never imported, nothing was made by it.
    made_by = sys.modules.get("multiprocessing.process")
    return None if made_by is None else made_by.parent_process()


@contextlib.contextmanager
def _handlers_kept() -> Generator[None]:
    """Put the signals' handlers back: the loop leaves the system's default behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None is a handler of native code, which cannot be put back.
            if handler is not None:
                signal.signal(number, handler)

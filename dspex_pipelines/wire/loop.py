"""The event loop under everything that sends frames: uvloop, which takes a tenth off a trial's cost."""

from __future__ import annotations

import gc
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

Result = TypeVar("Result")

YOUNG_OBJECTS = 20_000
"""Allocations before the collector looks: a trial makes dozens of objects and hardly a cycle."""


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run *main* on a new loop and return what it does, like `asyncio.run`."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, *before[1:])
    try:
        return uvloop.run(main)
    finally:
        gc.set_threshold(*before)


def run_process(main: Coroutine[Any, Any, Result]) -> Result:
    """`run` for a process of the pool's own: what is imported by now is never looked at by the collector again."""
    gc.collect()
    gc.freeze()
    return run(main)

"""When a frame is ready to go."""

from __future__ import annotations

import asyncio
from collections.abc import Sized

from dspex_pipelines.wire.codec import FRAME_TRIALS

QUIET_TURNS = 2
"""Turns of the loop without growth after which nothing more is to be expected."""


async def grown(waiting: Sized) -> None:
    """Return once *waiting* fills a frame or no longer grows.

    Everything that is ready gets its turn first, so frames are as full as the load allows; when idle this costs
    some turns of the loop, and never a timer.
    """
    quiet = size = 0
    while quiet <= QUIET_TURNS and len(waiting) < FRAME_TRIALS:
        quiet = quiet + 1 if size == len(waiting) else 1
        size = len(waiting)
        await asyncio.sleep(0)

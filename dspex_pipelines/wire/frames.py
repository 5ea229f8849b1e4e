"""When a frame is ready to go."""

from __future__ import annotations

import asyncio
from collections.abc import Sized

from dspex_pipelines.wire.codec import FRAME_TRIALS


async def grown(waiting: Sized) -> None:
    """Return once *waiting* fills a frame or no longer grows.

    Everything that is ready gets its turn first, so frames are as full as the load allows; when idle this costs
    a turn of the loop, and never a timer.
    """
    size = 0
    while size < len(waiting) < FRAME_TRIALS:
        size = len(waiting)
        await asyncio.sleep(0)

"""When a frame is ready to go."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sized

from dspex_pipelines.wire.codec import FRAME_TRIALS

QUIET_TURNS = 2
"""Turns of the loop without growth after which nothing more is to be expected at once."""
WORTH = 16
"""As many trials as make a frame's own price a small part of theirs."""
PAUSE_S = 0.004
"""The longest that a frame waits for them."""
MEMORY_S = 0.1
"""For how long a stream's rate remembers what went."""


class Frames:
    """Says when the next frame of one stream is ready, of which *waiting* is what waits.

    Everything that is ready gets its turn first, so frames are as full as the load allows; that costs some turns of
    the loop. A stream so busy that `WORTH` trials come together within `PAUSE_S` waits for so many: a frame costs the
    same however little is in it. On every other one a frame waits for no timer.
    """

    def __init__(
        self,
        waiting: Sized,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._waiting = waiting
        self._clock = clock
        self._sleep = sleep
        self._rate = 0.0
        """Trials per second, an exponential moving average."""
        self._looked = 0.0

    async def ready(self) -> None:
        """Return once what waits fills a frame or is not worth waiting for more."""
        waiting = self._waiting
        quiet = size = 0
        while quiet <= QUIET_TURNS and len(waiting) < FRAME_TRIALS:
            quiet = quiet + 1 if size == len(waiting) else 1
            size = len(waiting)
            await self._sleep(0)
        now = self._clock()
        self._rate *= math.exp((self._looked - now) / MEMORY_S)
        self._looked = now
        if len(waiting) < WORTH <= PAUSE_S * self._rate:
            await self._sleep((WORTH - len(waiting)) / self._rate)
        self._rate += min(len(waiting), FRAME_TRIALS) / MEMORY_S

"""When a frame goes: at once where trials are few, and filled where they are many."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dspex_pipelines.wire.codec import FRAME_TRIALS
from dspex_pipelines.wire.frames import MEMORY_S, PAUSE_S, WORTH, Frames


class Stream:
    """A writer whose time passes only while it sleeps, and what comes meanwhile: *arriving* by the time."""

    def __init__(self, arriving: Callable[[float], int]) -> None:
        self.now = 0.0
        self.waiting: list[int] = []
        self.pauses: list[float] = []
        self.sizes: list[int] = []
        self._arriving = arriving
        self._arrived = 0
        self._frames = Frames(self.waiting, clock=lambda: self.now, sleep=self._sleep)

    async def write_until(self, end: float) -> None:
        while self.now < end:
            if not self.waiting:
                await self._sleep(0.0001)
                continue
            pauses, self.pauses = self.pauses, []
            await self._frames.ready()
            self.pauses = [*pauses, *(pause for pause in self.pauses if pause)]
            self.sizes.append(min(len(self.waiting), FRAME_TRIALS))
            del self.waiting[:FRAME_TRIALS]

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)
        arrived = self._arriving(self.now)
        self.waiting.extend(range(arrived - self._arrived))
        self._arrived = arrived


@pytest.mark.parametrize("per_s", [10, 1_000, 3_000])
async def test_where_trials_are_few_none_waits(per_s: int) -> None:
    stream = Stream(lambda now: int(per_s * now))
    stream.pauses.clear()
    await stream.write_until(2.0)
    assert sum(stream.sizes) >= 2 * per_s - 2
    assert max(stream.pauses) <= 0.0001


@pytest.mark.parametrize("per_s", [5_000, 10_000, 40_000])
async def test_where_trials_are_many_a_frame_is_worth_its_price(per_s: int) -> None:
    stream = Stream(lambda now: int(per_s * now))
    await stream.write_until(1.0)
    busy = stream.sizes[-50:]
    assert sum(busy) / len(busy) > 0.75 * WORTH
    assert max(stream.pauses) <= PAUSE_S


async def test_a_frame_that_is_full_goes() -> None:
    stream = Stream(lambda _: 100 * FRAME_TRIALS)
    await stream.write_until(0.0001)
    await stream.write_until(0.0002)
    assert stream.sizes == [FRAME_TRIALS] * len(stream.sizes)


async def test_a_stream_that_was_busy_waits_for_nobody_a_moment_later() -> None:
    burst = 1_000
    stream = Stream(lambda now: burst if now < 10 * MEMORY_S else burst + 1)
    await stream.write_until(10 * MEMORY_S)
    stream.pauses.clear()
    await stream.write_until(10 * MEMORY_S + 0.001)
    assert stream.sizes[-1] == 1
    assert max(stream.pauses) <= 0.0001

"""Time that passes when it is told to, and streams that take some of it."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from tests.engine.schedules import Schedule

NEVER = math.inf


class Clock:
    """What is to happen, by time and then in the order in which it was said."""

    def __init__(self) -> None:
        self.now = 100.0
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def at(self, when: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), act))

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (self.now + seconds, next(self._order), act))

    def step(self) -> bool:
        """Let the next thing happen; return False when there is none."""
        if not self._heap:
            return False
        self.now, _, act = heapq.heappop(self._heap)
        act()
        return True


class Pool(Protocol):
    """What a stream knows of the rest."""

    schedule: Schedule
    rng: random.Random
    clock: Clock


class Stream:
    """One direction of a connection: messages arrive in their order, each after a delay of its own."""

    def __init__(self, pool: Pool, deliver: Callable[[Any], None]) -> None:
        self._pool = pool
        self._deliver = deliver
        self._last = 0.0
        self._cut = False
        self.stalled_until = 0.0

    def send(self, message: Any) -> None:
        pool = self._pool
        due = pool.clock.now + pool.rng.uniform(*pool.schedule.delay_s)
        self._last = max(self._last, due, self.stalled_until)
        pool.clock.at(self._last, partial(self._arrive, message))

    def cut(self) -> None:
        """Nothing arrives any more, not even what is on its way."""
        self._cut = True

    def _arrive(self, message: Any) -> None:
        if not self._cut:
            self._deliver(message)

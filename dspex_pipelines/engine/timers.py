"""One timer for each thing that may have one, with removal that costs nothing."""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar

UNSET = -1.0
_STALE = 64


class Timed(Protocol):
    """What can have a timer; `due` is when it fires, `UNSET` without one."""

    due: float


Owner = TypeVar("Owner", bound=Timed)


class Timers(Generic[Owner]):
    """A heap in which a removed timer stays until it comes up, or until such ones are the majority."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Owner]] = []
        self._live = 0
        self._made = 0

    def arm(self, owner: Owner, due: float) -> None:
        """Give *owner*, which has none, a timer at *due*."""
        heap = self._heap
        owner.due = due
        self._live += 1
        self._made += 1
        heapq.heappush(heap, (due, self._made, owner))
        if len(heap) > 2 * self._live + _STALE:
            heap[:] = [entry for entry in heap if entry[2].due == entry[0]]
            heapq.heapify(heap)

    def disarm(self, owner: Owner) -> None:
        """Take away the timer of *owner*, if it has one."""
        if owner.due >= 0.0:
            owner.due = UNSET
            self._live -= 1

    def pop(self, now: float) -> Owner | None:
        """Return whose timer fires at or before *now*, taking it away; None when nobody's does."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            due, _, owner = heapq.heappop(heap)
            if owner.due == due:
                self.disarm(owner)
                return owner
        return None

    def next(self) -> float | None:
        """Return when the next one fires."""
        heap = self._heap
        while heap and heap[0][2].due != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

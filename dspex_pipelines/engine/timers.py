"""One timer for each thing that may have one, with removal that costs nothing."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, Protocol, TypeVar

UNSET = -1.0
_STALE = 64


class Timed(Protocol):
    """What can have a timer; `due` is when it fires, `UNSET` without one."""

    due: float


Owner = TypeVar("Owner", bound=Timed)


class Timers(Generic[Owner]):
    """Timers in the order in which they fire; those that fire at the same time, in the order in which they were armed.

    Most are armed in that order already and stand in a line; those that are not are in a heap. A removed timer stays
    until it comes up, or until such ones are the majority.
    """

    def __init__(self) -> None:
        self._line: deque[tuple[float, int, Owner]] = deque()
        self._heap: list[tuple[float, int, Owner]] = []
        self._live = 0
        self._made = 0

    def arm(self, owner: Owner, due: float) -> None:
        """Give *owner*, which has none, a timer at *due*."""
        line = self._line
        owner.due = due
        self._live += 1
        self._made = made = self._made + 1
        if not line or line[-1][0] <= due:
            line.append((due, made, owner))
        else:
            heapq.heappush(self._heap, (due, made, owner))
        if not made % _STALE:
            self._clear()

    def disarm(self, owner: Owner) -> None:
        """Take away the timer of *owner*, if it has one."""
        if owner.due >= 0.0:
            owner.due = UNSET
            self._live -= 1

    def pop(self, now: float) -> Owner | None:
        """Return whose timer fires at or before *now*, taking it away; None when nobody's does."""
        due = self.next()
        if due is None or due > now:
            return None
        line, heap = self._line, self._heap
        _, _, owner = line.popleft() if line and not (heap and heap[0] < line[0]) else heapq.heappop(heap)
        self.disarm(owner)
        return owner

    def next(self) -> float | None:
        """Return when the next one fires."""
        line, heap = self._line, self._heap
        while line and line[0][2].due != line[0][0]:
            line.popleft()
        while heap and heap[0][2].due != heap[0][0]:
            heapq.heappop(heap)
        if line and heap:
            return min(line[0][0], heap[0][0])
        return line[0][0] if line else heap[0][0] if heap else None

    def _clear(self) -> None:
        if len(self._line) + len(self._heap) > 2 * self._live + _STALE:
            self._line = deque(entry for entry in self._line if entry[2].due == entry[0])
            self._heap = [entry for entry in self._heap if entry[2].due == entry[0]]
            heapq.heapify(self._heap)

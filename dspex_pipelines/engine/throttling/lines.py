"""Calls that wait for a permit, in their clients' turns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dspex_pipelines.engine.throttling.lanes import Lane


class Call:
    """A call that waits or is in flight."""

    __slots__ = (
        *("again", "call_id", "client", "cost", "epoch", "estimate", "flying", "generation", "lane", "since"),
        "weight",
    )

    def __init__(
        self, call_id: Hashable, lane: Lane, client: Hashable, estimate: int, *, again: bool, weight: int = 1
    ) -> None:
        self.call_id = call_id
        self.lane = lane
        self.client = client
        self.estimate = estimate
        self.again = again
        self.weight = weight
        """How many turns its client has for each one of a client of weight 1."""
        self.flying = False
        self.since = 0.0
        """When it was granted."""
        self.cost = 0.0
        """The tokens it was charged then."""
        self.generation = 0
        self.epoch = 0


class _Turn:
    __slots__ = ("again", "fresh", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        """How many calls more before others have their turns."""
        self.again: OrderedDict[Hashable, Call] = OrderedDict()
        self.fresh: OrderedDict[Hashable, Call] = OrderedDict()


class Line:
    """First come, first served within a client, except that those that come again go first.

    Clients take turns, each as many as its weight.

    Every step costs the same at any size.
    """

    __slots__ = ("_size", "_turns")

    def __init__(self) -> None:
        self._turns: OrderedDict[Hashable, _Turn] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Call]:
        for turn in self._turns.values():
            yield from turn.again.values()
            yield from turn.fresh.values()

    def add(self, call: Call) -> None:
        """Queue *call*."""
        turn = self._turns.get(call.client)
        if turn is None:
            turn = self._turns[call.client] = _Turn(call.weight)
        (turn.again if call.again else turn.fresh)[call.call_id] = call
        self._size += 1

    def first(self, *, fresh: bool = False) -> Call | None:
        """Return whose turn it is, leaving it there; with *fresh* those that come again go last instead."""
        for turn in self._turns.values():
            queue = (turn.fresh or turn.again) if fresh else (turn.again or turn.fresh)
            return next(iter(queue.values()))
        return None

    def remove(self, call: Call) -> None:
        """Take out a call that waits; the client's turn is over if it was next."""
        turn = self._turns[call.client]
        del (turn.again if call.again else turn.fresh)[call.call_id]
        self._size -= 1
        if not (turn.again or turn.fresh):
            del self._turns[call.client]

    def take(self, call: Call) -> None:
        """Take out the call whose turn it is."""
        self.remove(call)
        if (turn := self._turns.get(call.client)) is not None and len(self._turns) > 1:
            turn.left -= 1
            if not turn.left:
                turn.left = call.weight
                self._turns.move_to_end(call.client)

    def clear(self) -> None:
        """Take out all."""
        self._turns.clear()
        self._size = 0

"""Programs that say under which configuration they ran. A gate holds them until the test opens it."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import threading
from concurrent.futures import Future

_gates: dict[str, Future[None]] = {}
_lock = threading.Lock()
_numbers = itertools.count(1)


def _opened(gate: str) -> Future[None]:
    """What is done once nobody holds the file *gate* locked: one thread waits, for all trials of this process."""
    with _lock:
        future = _gates.get(gate)
        if future is None:
            future = _gates[gate] = Future()
            threading.Thread(target=_wait, args=(gate, future), daemon=True).start()
        return future


def _wait(gate: str, future: Future[None]) -> None:
    with open(gate) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    future.set_result(None)


async def in_loop(x: int, gate: str, called_under: list[int], a: int, b: int, c: int) -> dict[str, object]:
    await asyncio.wrap_future(_opened(gate))
    return {"x": x, "values": [a, b, c]}


def in_thread(x: int, gate: str, called_under: list[int], a: int, b: int, c: int) -> dict[str, object]:
    _opened(gate).result()
    return {"x": x, "values": [a, b, c]}


class Remembering:
    """Built for one configuration; remembers every one that it was called under."""

    def __init__(self, *, a: int, b: int, c: int) -> None:
        self.values = [a, b, c]
        self.number = next(_numbers)
        self.called_under: set[tuple[int, ...]] = set()
        self.lock = threading.Lock()

    def __call__(self, x: int, gate: str, called_under: list[int]) -> dict[str, object]:
        with self.lock:
            self.called_under.add(tuple(called_under))
        _opened(gate).result()
        with self.lock:
            seen = sorted(self.called_under)
        return {"x": x, "values": self.values, "seen": seen, "instance": self.number}


def one(example, outputs) -> float:
    return 1.0

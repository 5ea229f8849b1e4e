"""Programs and metrics that tests run in real workers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time


async def echo(x: int, k: int) -> dict[str, int]:
    await asyncio.sleep(0)
    return {"x": x, "k": k}


def in_thread(x: int, k: int) -> dict[str, int]:
    return {"x": x, "k": k}


class Configured:
    """Belongs to one configuration; says which, and who it is."""

    def __init__(self, *, k: int) -> None:
        self.k = k
        self.lock = threading.Lock()
        self.seen: set[int] = set()

    def __call__(self, x: int, k_expected: int = -1) -> dict[str, object]:
        with self.lock:
            self.seen.add(self.k)
        time.sleep(0.001)
        return {"x": x, "k": self.k, "seen": sorted(self.seen), "instance": id(self)}


def fifth_raises(x: int) -> int:
    if x % 5 == 0:
        raise ValueError(f"example {x} is not liked")
    return x


async def hangs(x: int) -> int:
    if x == 0:
        await asyncio.Event().wait()
    return x


def sleeps(x: int) -> int:
    if x == 0:
        time.sleep(3600)
    return x


def kills_once(x: int, marker: str) -> int:
    """Kill the worker at the first try of example 0; *marker* is where the first try leaves its mark."""
    if x == 0:
        try:
            with open(marker, "x"):
                os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
    return x


def exits(x: int) -> int:
    raise SystemExit(x)


def unserialisable(x: int) -> object:
    return {"x": object()}


def correct(example, outputs) -> bool:
    return outputs == example.inputs["x"]


def any_output(example, outputs) -> dict[str, float]:
    return {"one": 1.0}


def broken_metric(example, outputs) -> float:
    raise KeyError("nothing there")


def not_a_number(example, outputs) -> float:
    return float("nan")

"""Programs that do nothing, wait or compute, so that what is measured is everything else."""

from __future__ import annotations

import asyncio
import time
from typing import Any


async def asynchronous(x: int, k: int) -> int:
    """Answer at once, on the worker's loop."""
    return x + k


def synchronous(x: int, k: int) -> int:
    """Answer at once, in a thread."""
    return x + k


def same(example: object, outputs: float) -> bool:
    """Score without looking."""
    return outputs >= 0


def alone(x: int) -> int:
    """Answer at once, in a process of its own."""
    return x


async def waits(waits_s: list[float], k: int) -> float:
    """Take as long as is given for the configuration."""
    await asyncio.sleep(waits_s[k - 1])
    return waits_s[k - 1]


def waits_in_thread(waits_s: list[float], k: int) -> float:
    """Hold a thread for as long as is given for the configuration."""
    time.sleep(waits_s[k - 1])
    return waits_s[k - 1]


def computes(turns: int, k: int) -> int:
    """Keep the interpreter busy for so many turns of a loop."""
    found = k
    for number in range(turns):
        found = (found * 31 + number) % 1_000_003
    return found


async def echo(x: bytes) -> bytes:
    """Answer with what was asked."""
    return x


def whole(example: Any, outputs: bytes) -> bool:
    """Score whether it came back as it went."""
    return outputs == example.inputs["x"]

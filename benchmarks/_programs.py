"""Programs that do nothing, so that what is measured is everything else."""

from __future__ import annotations


async def asynchronous(x: int, k: int) -> int:
    """Answer at once, on the worker's loop."""
    return x + k


def synchronous(x: int, k: int) -> int:
    """Answer at once, in a thread."""
    return x + k


def same(example: object, outputs: int) -> bool:
    """Score without looking."""
    return outputs >= 0


def alone(x: int) -> int:
    """Answer at once, in a process of its own."""
    return x

"""A program that tells in which order its trials have run."""

from __future__ import annotations

import asyncio
from pathlib import Path


async def noted(name: str, gate: str, book: str) -> None:
    """Wait until the gate is there, then add *name* to the book."""
    while not Path(gate).exists():  # noqa: ASYNC240 - of another process
        await asyncio.sleep(0.01)
    with Path(book).open("a") as file:  # noqa: ASYNC230 - a few bytes
        file.write(name)


def judged(example, outputs) -> bool:
    return True

"""A program that hangs the first time, where it is told to."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dspex_pipelines import report_usage


async def hangs_once(x: int, folder: str) -> int:
    """Return *x*; but whoever takes the file of that name away hangs until it is cancelled, and then says so."""
    asked = Path(folder) / str(x)
    report_usage(tokens=1)
    try:
        asked.unlink()
    except FileNotFoundError:
        await asyncio.sleep(0.005)
        return x
    try:
        await asyncio.Event().wait()
    finally:
        asked.with_suffix(".cancelled").touch()
    return -1


def judged(example, outputs) -> bool:
    return outputs == example.inputs["x"]

"""DSPy without a pool: the same program and metric on bare event loops, in as many processes as a pool has workers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WARM = 100


def seconds(count: int, *, processes: int, in_flight: int) -> float:
    """Return how long *count* trials of `AsksInProcess` take, *in_flight* of them at a time."""
    own = [str(count // processes), str(in_flight // processes)]
    command = [sys.executable, "-m", "benchmarks._alone", *own]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for one in running:
        assert one.stdout is not None
        if one.stdout.readline().strip() != "ready":
            sys.exit("a process with DSPy alone did not start")
    started = time.perf_counter()
    for one in running:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in running:
        assert one.stdout is not None
        if one.stdout.readline().strip() != "done":
            sys.exit("a process with DSPy alone did not end")
    taken_s = time.perf_counter() - started
    for one in running:
        one.communicate()
    return taken_s


async def _ask(count: int, lanes: int) -> None:
    import dspy

    from benchmarks._dspy_programs import AsksInProcess, said

    program = AsksInProcess()
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            with dspy.context(lm=program.answer.lm):
                prediction = await program.acall(question=f"{number}?")
            if not said(None, prediction):
                raise RuntimeError("no answer")

    await asyncio.gather(*(lane() for _ in range(lanes)))


async def _main(count: int, lanes: int) -> None:
    await _ask(WARM, lanes)
    print("ready", flush=True)
    sys.stdin.readline()
    await _ask(count, lanes)
    print("done", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))

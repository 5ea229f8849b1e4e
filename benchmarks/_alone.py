"""DSPy without a pool: the same program and metric on bare event loops, in as many processes as a pool has workers."""

from __future__ import annotations

import asyncio
import sys
import warnings

from benchmarks._processes import seconds_together

WARM = 100


def seconds(count: int, *, processes: int, in_flight: int) -> float:
    """Return how long *count* trials of `AsksInProcess` take, *in_flight* of them at a time."""
    own = [str(count // processes), str(in_flight // processes)]
    return seconds_together(["-m", "benchmarks._alone", *own], processes=processes)


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

"""Trials that wait, as trials of language models do: how near to the ideal they come, next to bare asyncio.

An efficiency is ideal over actual time from the first trial to the last recorded outcome, ideal being the sum of all
waits over the trials in flight. The reference is the same waits in the same order on bare asyncio in one process, in
the same rounds. Of the case `mixed` the value is the time itself, held against greedy scheduling worked out of the
same waits. Values are medians over the rounds, and the ratio that of the ratios within a round; every round has waits
of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

from benchmarks._report import report
from benchmarks._runs import CONFIGURATIONS, plan_of, seconds_of
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.engine.pages import Pages
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.trial import Example
from dspex_pipelines.wire.loop import run

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
WAIT_S = 0.2
SIGMA = 1.5
MEAN_S = 0.1
STRAGGLER = 500
"""One in so many trials of mixed lengths takes `STRAGGLES` times as long."""
STRAGGLES = 20

Waits = Callable[[Random, int], list[float]]


def jittered(random: Random, count: int) -> list[float]:
    return [WAIT_S * random.uniform(0.5, 1.5) for _ in range(count)]


def constant(_: Random, count: int) -> list[float]:
    return [WAIT_S] * count


def mixed(random: Random, count: int) -> list[float]:
    mu = math.log(MEAN_S) - SIGMA**2 / 2
    return [
        random.lognormvariate(mu, SIGMA) * (STRAGGLES if number % STRAGGLER == STRAGGLER // 2 else 1)
        for number in range(count)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What waits, and how many at a time."""

    waits: Waits
    in_flight: int
    goal: float
    share: float = 1.0
    """Of the trials that are asked for."""
    program: str = "waits"


CASES = {
    "jitter-200": Case(waits=jittered, in_flight=200, goal=0.97),
    "constant-200": Case(waits=constant, in_flight=200, goal=0.97),
    "threads-200": Case(waits=jittered, in_flight=200, goal=0.93, program="waits_in_thread"),
    "mixed": Case(waits=mixed, in_flight=200, goal=1.1, share=2.5),
    "jitter-2000": Case(waits=jittered, in_flight=2_000, goal=0.95, share=5.0),
    "constant-2000": Case(waits=constant, in_flight=2_000, goal=0.95, share=5.0),
}


def greedy_s(waits: Sequence[float], slots: int) -> float:
    """Return how long *waits* take, in order, each in the slot that is free first."""
    ends = [0.0] * slots
    for wait_s in waits:
        heapq.heapreplace(ends, ends[0] + wait_s)
    return max(ends)


def asyncio_s(waits: Sequence[float], in_flight: int) -> float:
    """Return how long *waits* take, in order, *in_flight* at a time, on bare asyncio."""

    async def lanes() -> float:
        left = iter(waits)

        async def lane() -> None:
            for wait_s in left:
                await asyncio.sleep(wait_s)

        started = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(in_flight)))
        return time.perf_counter() - started

    return asyncio.run(lanes())


def examples_of(waits: Sequence[float], generation: str) -> list[Example]:
    """Return examples that hold the waits of their trials, one for each configuration."""
    rows = len(waits) // CONFIGURATIONS
    return [
        Example(example_id=f"{generation}-{row}", inputs={"waits_s": list(waits[row::rows])}) for row in range(rows)
    ]


def in_order(plan: Plan, examples: Sequence[Example]) -> Iterator[float]:
    """Yield the waits in the order in which the trials are run."""
    for page in Pages(plan.trials(Batch(start=0, stop=plan.total), examples)):
        for spec in page:
            yield spec.example.inputs["waits_s"][int(spec.configuration.values["k"]) - 1]


class Bench:
    """A pool of two workers with as many slots as trials may be in flight."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address = address
        self._folder = folder

    def seconds(self, case: Case, waits: Sequence[float], generation: str) -> tuple[float, list[float]]:
        """Return how long trials with these *waits* took, journal on, and the waits in the order of the trials."""
        plan = plan_of(f"benchmarks._programs:{case.program}", len(waits), generation, evaluation="latency")
        examples = examples_of(waits, generation)
        running = seconds_of(
            plan,
            examples,
            address=self._address,
            journal=self._folder / f"{generation}.sqlite",
            max_concurrency=case.in_flight,
            timeout_s=600,
        )
        return run(running), list(in_order(plan, examples))


def measure(bench: Bench, name: str, *, trials: int, rounds: int) -> None:
    case = CASES[name]
    count = max(1, round(trials * case.share) // CONFIGURATIONS) * CONFIGURATIONS
    # Imports, first connections and threads are not what is measured.
    bench.seconds(case, [0.01] * max(CONFIGURATIONS, min(count, 2 * case.in_flight)), f"warm-{name}")
    values: list[float] = []
    references: list[float] = []
    longest: list[float] = []
    for number in range(rounds):
        took_s, waits = bench.seconds(case, case.waits(Random(f"{name}-{number}"), count), f"{name}-{number}")
        ideal_s = sum(waits) / case.in_flight
        longest.append(round(max(waits), 2))
        if case.waits is mixed:
            values.append(took_s)
            references.append(greedy_s(waits, case.in_flight))
        else:
            values.append(100 * ideal_s / took_s)
            references.append(100 * ideal_s / asyncio_s(waits, case.in_flight))
    report(
        benchmark="latency",
        case=name,
        value=median(values),
        unit="s" if case.waits is mixed else "% of ideal",
        reference="greedy scheduling" if case.waits is mixed else "asyncio",
        reference_value=median(references),
        ratio=median(value / reference for value, reference in zip(values, references, strict=True)),
        goal=case.goal,
        trials=count,
        in_flight=case.in_flight,
        rounds=[round(value, 2) for value in values],
        reference_rounds=[round(value, 2) for value in references],
        longest_s=longest,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=latency", description=__doc__)
    parser.add_argument(
        "--trials", type=int, default=4_000, help="with 200 in flight; five times as many with 2,000, mixed 2.5 times"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), metavar="CASE")
    arguments = parser.parse_args()
    for in_flight in sorted({CASES[name].in_flight for name in arguments.cases}):
        with tempfile.TemporaryDirectory(prefix="dspex-") as path:
            folder = Path(path)
            slots = in_flight // WORKERS
            with local_pool.lease(workers=WORKERS, slots=slots, cwd=ROOT, runtime_root=folder / "pool") as lease:
                for name in arguments.cases:
                    if CASES[name].in_flight == in_flight:
                        measure(Bench(lease.address, folder), name, trials=arguments.trials, rounds=arguments.rounds)
            local_pool.stop(runtime_root=folder / "pool")


if __name__ == "__main__":
    main()

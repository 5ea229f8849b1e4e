"""Programs that compute, in threads: what a second worker, and so a second core, brings.

A pool of one worker and a pool of two, in turn in every round, with the same slots in each worker. Values are medians
over the rounds, and the ratio that of the ratios within a round. `bare` is what the machine itself gave in the same
rounds: the same loop in two bare processes over one. Client and bridge compute too, on the same cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks._programs import computes
from benchmarks._report import report
from benchmarks._runs import CONFIGURATIONS, plan_of, seconds_of
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.model.trial import Example
from dspex_pipelines.wire.loop import run

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "benchmarks._programs:computes"
GOAL = 1.8
TURNS = 10_000
BARE = """
import sys, time
from benchmarks._programs import computes
turns, count = map(int, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    computes(turns, number)
print("done", flush=True)
"""


def turns_for(trial_s: float) -> int:
    """Return how many turns of the program's loop take *trial_s* here."""

    def took_s() -> float:
        started = time.perf_counter()
        computes(TURNS, 1)
        return time.perf_counter() - started

    return max(1, round(TURNS * trial_s / min(took_s() for _ in range(50))))


def bare_per_s(turns: int, count: int, processes: int) -> float:
    """Return the rate of *count* calls of the program over so many bare processes."""
    command = [sys.executable, "-c", BARE, str(turns), str(count // processes)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for one in running:
        assert one.stdout is not None
        one.stdout.readline()
    started = time.perf_counter()
    for one in running:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in running:
        assert one.stdout is not None
        one.stdout.readline()
    taken_s = time.perf_counter() - started
    for one in running:
        one.communicate()
    return count // processes * processes / taken_s


async def trials_per_s(
    address: str, folder: Path, *, turns: int, count: int, max_concurrency: int, generation: str
) -> float:
    """Return the rate of *count* trials through the pool at *address*, journal on."""
    examples = [
        Example(example_id=f"{generation}-{row}", inputs={"turns": turns}) for row in range(count // CONFIGURATIONS)
    ]
    seconds = await seconds_of(
        plan_of(PROGRAM, count, generation, evaluation="cpu"),
        examples,
        address=address,
        journal=folder / f"{generation}.sqlite",
        max_concurrency=max_concurrency,
        timeout_s=60,
    )
    return count / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=cpu", description=__doc__)
    parser.add_argument("--trials", type=int, default=1_000, help="in a round of a pool")
    parser.add_argument("--trial-ms", type=float, default=5.0, help="how long one computes")
    parser.add_argument("--slots", type=int, default=8, help="of each worker")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    count = max(1, arguments.trials // CONFIGURATIONS) * CONFIGURATIONS
    turns = turns_for(arguments.trial_ms / 1e3)
    rates: dict[int, list[float]] = {1: [], 2: []}
    bare: list[float] = []
    with tempfile.TemporaryDirectory(prefix="dspex-") as path:
        folder = Path(path)
        slots, root = arguments.slots, folder / "pool"
        with (
            local_pool.lease(workers=1, slots=slots, cwd=ROOT, runtime_root=root) as one,
            local_pool.lease(workers=2, slots=slots, cwd=ROOT, runtime_root=root) as two,
        ):
            pools = {1: one.address, 2: two.address}

            def rate(workers: int, count: int, generation: str) -> float:
                return run(
                    trials_per_s(
                        pools[workers],
                        folder,
                        turns=turns,
                        count=count,
                        # One that waits for each that runs: a slot is filled again without asking the client.
                        max_concurrency=2 * workers * slots,
                        generation=generation,
                    )
                )

            for workers in pools:  # imports and first connections are not what is measured
                rate(workers, CONFIGURATIONS, f"warm-{workers}")
            for number in range(arguments.rounds):
                for workers in pools:
                    rates[workers].append(rate(workers, count, f"{workers}-{number}"))
                bare.append(bare_per_s(turns, count, 2) / bare_per_s(turns, count, 1))
        local_pool.stop(runtime_root=root)
    report(
        benchmark="cpu",
        case="two workers",
        value=median(rates[2]),
        unit="trials/s",
        reference="one worker",
        reference_value=median(rates[1]),
        ratio=median(two / one for one, two in zip(rates[1], rates[2], strict=True)),
        goal=GOAL,
        trial_ms=arguments.trial_ms,
        bare=round(median(bare), 3),
        rounds=[round(rate) for rate in rates[2]],
        reference_rounds=[round(rate) for rate in rates[1]],
        bare_rounds=[round(ratio, 2) for ratio in bare],
    )


if __name__ == "__main__":
    main()

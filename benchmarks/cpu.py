"""Programs that compute, in threads: what a second worker, and so a second core, brings.

A pool of one worker and a pool of two, in turn in every round, with the same slots in each worker. Values are medians
over the rounds, and the ratio that of the ratios within a round. `bare` is what the machine itself gave in the same
rounds: the same loop in two bare processes over one. Client and bridge compute too, on the same cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks._processes import seconds_together
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
import sys
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
    taken_s = seconds_together(["-c", BARE, str(turns), str(count // processes)], processes=processes)
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


def measure(pools: dict[int, str], folder: Path, *, trial_ms: int, slots: int, seconds: float, rounds: int) -> None:
    turns = turns_for(trial_ms / 1e3)
    count = max(1, round(seconds * 1e3 / trial_ms / CONFIGURATIONS)) * CONFIGURATIONS
    rates: dict[int, list[float]] = {workers: [] for workers in pools}
    bare: list[float] = []

    def rate(workers: int, count: int, number: int) -> float:
        return run(
            trials_per_s(
                pools[workers],
                folder,
                turns=turns,
                count=count,
                # One that waits for each that runs: a slot is filled again without asking the client.
                max_concurrency=2 * workers * slots,
                generation=f"{trial_ms}-{workers}-{number}",
            )
        )

    for workers in pools:  # imports and first connections are not what is measured
        rate(workers, CONFIGURATIONS, -1)
    for number in range(rounds):
        for workers in pools:
            rates[workers].append(rate(workers, workers * count, number))
        bare.append(bare_per_s(turns, 2 * count, 2) / bare_per_s(turns, count, 1))
    report(
        benchmark="cpu",
        case=f"trials of {trial_ms} ms",
        value=median(rates[2]),
        unit="trials/s with two workers",
        reference="one worker",
        reference_value=median(rates[1]),
        ratio=median(two / one for one, two in zip(rates[1], rates[2], strict=True)),
        goal=GOAL,
        bare=round(median(bare), 3),
        rounds=[round(rate) for rate in rates[2]],
        reference_rounds=[round(rate) for rate in rates[1]],
        bare_rounds=[round(ratio, 2) for ratio in bare],
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=cpu", description=__doc__)
    parser.add_argument("--trial-ms", type=int, nargs="*", default=[5, 20], help="how long one computes, a case each")
    parser.add_argument("--seconds", type=float, default=2.0, help="of computing for each worker in a round")
    parser.add_argument("--slots", type=int, default=8, help="of each worker")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dspex-") as path:
        folder, slots = Path(path), arguments.slots
        root = folder / "pool"
        with (
            local_pool.lease(workers=1, slots=slots, cwd=ROOT, runtime_root=root) as one,
            local_pool.lease(workers=2, slots=slots, cwd=ROOT, runtime_root=root) as two,
        ):
            for trial_ms in arguments.trial_ms:
                measure(
                    {1: one.address, 2: two.address},
                    folder,
                    trial_ms=trial_ms,
                    slots=slots,
                    seconds=arguments.seconds,
                    rounds=arguments.rounds,
                )
        local_pool.stop(runtime_root=root)


if __name__ == "__main__":
    main()

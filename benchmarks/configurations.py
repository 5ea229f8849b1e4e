"""What a configuration costs: as many trials of a program that does nothing, in few configurations and in many.

Each configuration is applied at the bridge and made ready in the workers that run trials of it. In the same rounds, the
same number of trials in `CONFIGURATIONS`. Values are medians over the rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from benchmarks._report import report
from benchmarks._runs import CONFIGURATIONS, plan_of, seconds_of
from benchmarks.throughput import PROGRAMS, ROOT, SLOTS, WORKERS
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.model.trial import Example
from dspex_pipelines.wire.loop import run


async def seconds_in(configurations: int, trials: int, address: str, folder: Path, generation: str) -> float:
    """Return how long *trials* in so many configurations take, into a fresh journal."""
    plan = plan_of(PROGRAMS["async"], trials, generation, evaluation="configurations", configurations=configurations)
    return await seconds_of(
        plan,
        [Example(example_id=str(number), inputs={"x": number}) for number in range(plan.rows)],
        address=address,
        journal=folder / f"{generation}.sqlite",
        max_concurrency=WORKERS * SLOTS,
        timeout_s=60,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=configurations", description=__doc__)
    parser.add_argument("--trials", type=int, default=40_000, help="in each case")
    parser.add_argument("--many", type=int, nargs="+", default=[1_000, 10_000], help="configurations, a case each")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for number in (CONFIGURATIONS, *arguments.many):
        if arguments.trials % number:
            parser.error(f"{arguments.trials:,} trials cannot be shared by {number:,} configurations alike")
    taken: dict[int, list[float]] = {number: [] for number in (CONFIGURATIONS, *arguments.many)}
    with tempfile.TemporaryDirectory(prefix="dspex-") as name:
        folder = Path(name)
        with local_pool.lease(workers=WORKERS, slots=SLOTS, cwd=ROOT, runtime_root=folder / "pool") as lease:
            # Imports and first connections are not what is measured.
            run(seconds_in(CONFIGURATIONS, CONFIGURATIONS, lease.address, folder, "warm"))
            for turn in range(arguments.rounds):
                for number, seconds in taken.items():
                    generation = f"{number}-{turn}"
                    seconds.append(run(seconds_in(number, arguments.trials, lease.address, folder, generation)))
        local_pool.stop(runtime_root=folder / "pool")
    few_s = median(taken[CONFIGURATIONS])
    for number in arguments.many:
        report(
            benchmark="configurations",
            case=f"{number:,} configurations",
            value=arguments.trials / median(taken[number]),
            unit="trials/s",
            reference=f"{CONFIGURATIONS} configurations",
            reference_value=arguments.trials / few_s,
            us_per_configuration=round(1e6 * (median(taken[number]) - few_s) / (number - CONFIGURATIONS)),
            rounds=[round(arguments.trials / seconds) for seconds in taken[number]],
            reference_rounds=[round(arguments.trials / seconds) for seconds in taken[CONFIGURATIONS]],
        )


if __name__ == "__main__":
    main()

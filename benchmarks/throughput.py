"""Trials per second of programs that do nothing: executor → bridge → two workers, journal on.

Beside it, in the same rounds, the raw ceiling: the same frames over two bare hops (`benchmarks._ceiling`). The bare
pool is those with an asynchronous program called in between: what no pool can leave out. Values are medians over the
rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import _ceiling, _runs
from benchmarks._report import report
from benchmarks._runs import CONFIGURATIONS, seconds_of
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.trial import Example
from dspex_pipelines.wire.loop import run

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {"async": "benchmarks._programs:asynchronous", "threads": "benchmarks._programs:synchronous"}
WORKERS = 2
SLOTS = 512


def plan_of(case: str, count: int, generation: str) -> Plan:
    """Return a plan of *count* trials, in `CONFIGURATIONS` configurations."""
    return _runs.plan_of(PROGRAMS[case], count, generation, evaluation="throughput", partition=case)


async def trials_per_s(address: str, folder: Path, *, case: str, count: int, generation: str) -> float:
    """Run *count* trials through the pool at *address* into a fresh journal; return the rate."""
    examples = [Example(example_id=str(number), inputs={"x": number}) for number in range(count // CONFIGURATIONS)]
    plan = plan_of(case, count, generation)
    seconds = await seconds_of(
        plan,
        examples,
        address=address,
        journal=folder / f"{generation}.sqlite",
        max_concurrency=WORKERS * SLOTS,
        timeout_s=60,
    )
    return count / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=throughput", description=__doc__)
    parser.add_argument("--trials", type=int, default=100_000, help="in a round of a case")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in ("ceiling", "bare pool", *PROGRAMS)}
    with tempfile.TemporaryDirectory(prefix="dspex-") as name:
        folder = Path(name)
        with (
            local_pool.lease(workers=WORKERS, slots=SLOTS, cwd=ROOT, runtime_root=folder / "pool") as lease,
            _ceiling.ceiling_pool(folder, workers=WORKERS) as bare,
            _ceiling.ceiling_pool(folder, workers=WORKERS, calls=True) as calling,
        ):
            for case in PROGRAMS:  # imports and first connections are not what is measured
                run(trials_per_s(lease.address, folder, case=case, count=1_000, generation=f"warm-{case}"))
            for number in range(arguments.rounds):
                window = WORKERS * SLOTS
                rates["ceiling"].append(run(_ceiling.trials_per_s(bare, count=arguments.trials, window=window)))
                least = _ceiling.trials_per_s(calling, count=arguments.trials, window=window, calls=True)
                rates["bare pool"].append(run(least))
                for case in PROGRAMS:
                    rate = trials_per_s(
                        lease.address, folder, case=case, count=arguments.trials, generation=f"{case}-{number}"
                    )
                    rates[case].append(run(rate))
        local_pool.stop(runtime_root=folder / "pool")
    ceiling = median(rates["ceiling"])
    for case in PROGRAMS:
        report(
            benchmark="throughput",
            case=case,
            value=median(rates[case]),
            unit="trials/s",
            reference="raw ceiling",
            reference_value=ceiling,
            rounds=[round(rate) for rate in rates[case]],
            reference_rounds=[round(rate) for rate in rates["ceiling"]],
            bare_pool=round(median(rates["bare pool"])),
            of_bare_pool=round(median(rates[case]) / median(rates["bare pool"]), 4),
        )


if __name__ == "__main__":
    main()

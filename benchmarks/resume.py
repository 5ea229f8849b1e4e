"""How long an evaluation takes of which every trial is recorded already: until it is known that nothing is left to do.

Beside it, in the same rounds, running those trials. Values are medians over the rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._report import report
from benchmarks._runs import seconds_of, summary_of
from benchmarks.throughput import CONFIGURATIONS, ROOT, SLOTS, WORKERS, plan_of
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.trial import Example
from dspex_pipelines.wire.loop import run


async def nothing_to_do_s(plan: Plan, examples: list[Example], **options: Any) -> float:
    """Return how long it takes to say so, a client's connection and the opening of the journal included."""
    started = time.perf_counter()
    done = await summary_of(plan, examples, **options)
    if done.reused != plan.total:
        msg = f"{done.reused} of {plan.total} trials were recorded"
        raise RuntimeError(msg)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=resume", description=__doc__)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    running, resuming = [], []
    plan = plan_of("async", arguments.trials, "resume")
    with tempfile.TemporaryDirectory(prefix="dspex-") as name:
        folder = Path(name)
        rows = arguments.trials // CONFIGURATIONS
        with local_pool.lease(workers=WORKERS, slots=SLOTS, cwd=ROOT, runtime_root=folder / "pool") as lease:
            for number in range(arguments.rounds):
                options: dict[str, Any] = {
                    "address": lease.address,
                    "journal": folder / f"{number}.sqlite",
                    "max_concurrency": WORKERS * SLOTS,
                    "timeout_s": 60,
                }
                # Anew for each: what they remember of themselves is what takes the time.
                for taken, measured in ((running, seconds_of), (resuming, nothing_to_do_s)):
                    examples = [Example(example_id=str(row), inputs={"x": row}) for row in range(rows)]
                    taken.append(run(measured(plan, examples, **options)))
        local_pool.stop(runtime_root=folder / "pool")
    report(
        benchmark="resume",
        case=f"{plan.total:,} trials",
        value=1_000 * median(resuming),
        unit="ms",
        reference="running them",
        reference_value=1_000 * median(running),
        us_per_trial=round(1e6 * median(resuming) / plan.total, 2),
        rounds=[round(seconds, 3) for seconds in resuming],
        reference_rounds=[round(seconds, 3) for seconds in running],
    )


if __name__ == "__main__":
    main()

"""How long it takes to begin: `import dspex_pipelines`, and the first trial of a pool that is not up yet, or that is.

`import` is a fresh interpreter that imports the package, held against one that imports nothing, in turn.
`first trial, cold` is from no pool at all to the outcome of a trial, for a client process that has imported what it
needs; beside it, what each of the three processes that start one after the other has to import at the least.
`first trial, warm` is a trial that finds pool, client and session ready, one at a time; beside it, the same frames
over two bare hops (`benchmarks._ceiling`). Values are medians.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import _ceiling
from benchmarks._report import report
from benchmarks.throughput import ROOT, WORKERS, plan_of
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.model.outcome import TrialResult
from dspex_pipelines.model.plan import Batch
from dspex_pipelines.model.trial import Example
from dspex_pipelines.wire.loop import run

IMPORT_GOAL_MS = 30.0
COLD_GOAL_S = 2.0
WARM_GOAL_MS = 20.0


def interpreter_s(code: str) -> float:
    """Return how long a fresh interpreter takes for *code*, from its start to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return time.perf_counter() - started


def import_case(rounds: int) -> None:
    ours, bare = [], []
    for _ in range(rounds):
        bare.append(interpreter_s("pass"))
        ours.append(interpreter_s("import dspex_pipelines"))
    report(
        benchmark="start",
        case="import",
        value=1_000 * median(ours),
        unit="ms",
        reference="bare Python",
        reference_value=1_000 * median(bare),
        over_ms=round(1_000 * (median(ours) - median(bare)), 1),
        goal_over_ms=IMPORT_GOAL_MS,
    )


async def trial_seconds(address: str, count: int) -> list[float]:
    """Return how long each of *count* trials takes one after the other; the first opens client and session."""
    plan = plan_of("async", 20 * count, "start")
    examples = [Example(example_id=str(number), inputs={"x": number}) for number in range(count)]
    taken = []
    started = time.perf_counter()
    async with PoolClient(address) as pool:
        runner = TrialRunner(pool, metrics=plan.metrics, space_json=plan.space_json, timeout_s=60)
        for spec in plan.trials(Batch(start=0, stop=count), examples):
            outcome = await runner.run(spec)
            assert isinstance(outcome, TrialResult), outcome
            pool.commit(1)
            taken.append(time.perf_counter() - started)
            started = time.perf_counter()
    return taken


def cold_case(rounds: int) -> None:
    cold, up, imports = [], [], []
    for _ in range(rounds):
        imports.append(interpreter_s("import grpc.aio"))
        with tempfile.TemporaryDirectory(prefix="dspex-") as name:
            started = time.perf_counter()
            with local_pool.lease(workers=WORKERS, cwd=ROOT, runtime_root=Path(name)) as lease:
                up.append(time.perf_counter() - started)
                cold.append(up[-1] + run(trial_seconds(lease.address, 1))[0])
            local_pool.stop(runtime_root=Path(name))
    report(
        benchmark="start",
        case="first trial, cold",
        value=1_000 * median(cold),
        unit="ms",
        reference="2 × import grpc.aio",
        reference_value=2_000 * median(imports),
        pool_up_s=round(median(up), 3),
        rounds=[round(seconds, 2) for seconds in cold],
        goal_s=COLD_GOAL_S,
    )


def warm_case(trials: int) -> None:
    with tempfile.TemporaryDirectory(prefix="dspex-") as name:
        folder = Path(name)
        with (
            local_pool.lease(workers=WORKERS, cwd=ROOT, runtime_root=folder / "pool") as lease,
            _ceiling.ceiling_pool(folder, workers=WORKERS) as bare,
        ):
            taken = run(trial_seconds(lease.address, trials + 1))[1:]
            rate = run(_ceiling.trials_per_s(bare, count=trials, window=1))
        local_pool.stop(runtime_root=folder / "pool")
    report(
        benchmark="start",
        case="first trial, warm",
        value=1_000 * median(taken),
        unit="ms",
        reference="raw ceiling",
        reference_value=1_000 / rate,
        first_ms=round(1_000 * taken[0], 2),
        goal_ms=WARM_GOAL_MS,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=start", description=__doc__)
    parser.add_argument("--imports", type=int, default=21, help="rounds of the first case")
    parser.add_argument("--rounds", type=int, default=5, help="of the second")
    parser.add_argument("--trials", type=int, default=200, help="of the third")
    arguments = parser.parse_args()
    import_case(arguments.imports)
    cold_case(arguments.rounds)
    warm_case(arguments.trials)


if __name__ == "__main__":
    main()

"""Whole runs of an evaluation's job with the shipped executor and instance: from RUN_START to RUN_SUCCESS.

Each size is run once more with nothing changed. Beside each, the same trials outside Dagster, through the same pool,
which is warm. The smallest size says what a run costs by itself, `per trial` what each adds up to the largest. `steps`
are seconds from a step's launch to its success, of the last round. Values are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import dagster as dg

from benchmarks._evaluations import IN_FLIGHT, evaluation_of
from benchmarks._report import report
from benchmarks._runs import seconds_of
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec
from dspex_pipelines.orchestration.naming import job_name
from dspex_pipelines.wire.loop import run

ROOT = Path(__file__).resolve().parent.parent
SIZES = (20, 10_000, 100_000)
GOAL_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A Dagster instance as it is shipped, and where its local pool is; each round has evaluations of its own."""

    home: Path
    sizes: tuple[int, ...]
    rounds: int

    def __post_init__(self) -> None:
        shutil.copy(ROOT / "dagster.yaml", self.home)
        every = [(size, number) for number in range(-1, self.rounds) for size in self.sizes]
        text = f"from benchmarks._evaluations import definitions\n\ndefs = definitions({every})\n"
        (self.home / "evaluations.py").write_text(text)

    def run_s(self, trials: int, round_: int) -> tuple[float, dict[str, float]]:
        """Run the job of that size; return its seconds, and those of each step."""
        job = job_name(evaluation_of(trials, round_))
        command = [sys.executable, "-m", "dagster", "job", "execute", "-f", str(self.home / "evaluations.py")]
        tags = json.dumps({"dagster/partition": "all"})
        done = subprocess.run(
            [*command, "-j", job, "--tags", tags],
            cwd=ROOT,
            env={**os.environ, "DAGSTER_HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            (one,) = instance.get_runs(limit=1)
            return _seconds(instance.all_logs(one.run_id))

    def outside_s(self, trials: int, round_: int) -> float:
        """Run as many trials through the pool of the runs; return the seconds."""
        (pool,) = local_pool.status(runtime_root=self.home / "dspex")
        evaluation = evaluation_of(trials, round_)
        configurations = tuple(evaluation.space.grid())
        rows = trials // len(configurations)
        plan = Plan(
            evaluation=evaluation.name,
            partition="all",
            dataset_digest="none",
            rows=rows,
            program=ProgramSpec(entry_point=evaluation.program, version=program_version(evaluation.program, {})),
            metrics=tuple(MetricSpec(entry_point=one, version=metric_version(one)) for one in evaluation.metrics),
            space_json=evaluation.space.to_json(),
            configurations=configurations,
            generation=f"outside-{round_}",
        )
        examples = [Example(example_id=str(row), inputs={"x": row}, labels={"y": row}) for row in range(rows)]
        journal = self.home / f"outside-{trials}-{round_}.sqlite"
        options: dict[str, Any] = {"max_concurrency": IN_FLIGHT, "timeout_s": 60}
        return run(seconds_of(plan, examples, address=pool.address, journal=journal, **options))


def _seconds(entries: Sequence[dg.EventLogEntry]) -> tuple[float, dict[str, float]]:
    kinds = dg.DagsterEventType
    run_: dict[dg.DagsterEventType, float] = {}
    begun: dict[str, float] = {}
    steps: dict[str, float] = {}
    for entry in entries:
        event = entry.dagster_event
        if event is None:
            continue
        run_[event.event_type] = entry.timestamp
        key = event.step_key or ""
        if event.event_type in (kinds.STEP_WORKER_STARTING, kinds.STEP_START):
            begun.setdefault(key, entry.timestamp)
        elif event.event_type is kinds.STEP_SUCCESS:
            name = key.partition("[")[0].rpartition(".")[2].rpartition("__")[2]
            steps[name] = round(steps.get(name, 0.0) + entry.timestamp - begun[key], 2)
    return run_[kinds.RUN_SUCCESS] - run_[kinds.RUN_START], steps


def measure(bench: Bench, trials: int, rounds: int) -> tuple[float, float]:
    """Report what *trials* trials take in a run, and in one that finds them all; return the first and the second."""
    inside, outside, again = [], [], []
    steps: dict[str, dict[str, float]] = {}
    for number in range(rounds):
        seconds, steps["first"] = bench.run_s(trials, number)
        inside.append(seconds)
        seconds, steps["again"] = bench.run_s(trials, number)
        again.append(seconds)
        outside.append(bench.outside_s(trials, number))
    for case, taken, found in (("", inside, "first"), (", unchanged", again, "again")):
        over_s = median(taken) - (median(outside) if found == "first" else 0.0)
        report(
            benchmark="dagster",
            case=f"{trials:,} trials{case}",
            value=1_000 * median(taken),
            unit="ms",
            reference="outside Dagster",
            reference_value=1_000 * median(outside),
            over_s=round(over_s, 2),
            goal_over_s=GOAL_S,
            rounds=[round(seconds, 2) for seconds in taken],
            steps=steps[found],
        )
    return median(inside), median(outside)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=dagster", description=__doc__)
    parser.add_argument("--trials", type=int, nargs="*", default=SIZES, help="multiples of 10, each a case or two")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    sizes = tuple(arguments.trials)
    with tempfile.TemporaryDirectory(prefix="dspex-") as name:
        bench = Bench(home=Path(name), sizes=sizes, rounds=arguments.rounds)
        try:
            bench.run_s(sizes[0], -1)  # starts the pool, which is what the benchmark `start` measures
            found = {size: measure(bench, size, arguments.rounds) for size in sizes}
        finally:
            local_pool.stop(runtime_root=bench.home / "dspex")
    least, most = min(sizes), max(sizes)
    if least == most:
        return
    inside, outside = (1e6 * (found[most][which] - found[least][which]) / (most - least) for which in (0, 1))
    report(
        benchmark="dagster",
        case="per trial",
        value=inside,
        unit="µs",
        reference="outside Dagster",
        reference_value=outside,
    )


if __name__ == "__main__":
    main()

"""DSPy programs that call a model: how near to what the model permits, and to `dspy.Evaluate` in the same run.

The provider is the stand-in of `dspex_pipelines.loopback`, in a process of its own on the same machine. An efficiency
is ideal over actual time, ideal being calls × latency / calls in flight, from the first trial to the last outcome.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks import _alone
from benchmarks._dspy_programs import BASE, LATENCY_S
from benchmarks._report import report
from benchmarks._runs import seconds_of
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.loopback.process import Server, serving
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.limits import RateLimit
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec
from dspex_pipelines.wire.loop import run

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = "benchmarks._dspy_programs"
METRIC = f"{PROGRAMS}:said"
WORKERS = 2
IN_FLIGHT = 200
PER_S = 50
BURST = 10


class Bench:
    """A pool of two workers whose programs call one provider."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address = address
        self._folder = folder
        self._runs = 0

    def seconds(self, program: str, count: int, *, policy: CallPolicy | None = None) -> float:
        """Return how long *count* trials of one call each take, `IN_FLIGHT` at a time, journal on."""
        return run(self._seconds(f"{PROGRAMS}:{program}", count, policy))

    async def _seconds(self, entry: str, count: int, policy: CallPolicy | None) -> float:
        self._runs += 1
        plan = Plan(
            evaluation="providers",
            partition="all",
            dataset_digest="none",
            rows=count,
            program=ProgramSpec(entry_point=entry, version=program_version(entry, {})),
            metrics=(MetricSpec(entry_point=METRIC, version=metric_version(METRIC)),),
            space_json=ConfigurationSpace().to_json(),
            configurations=(Configuration({}),),
            generation=f"run-{self._runs}",
        )
        examples = [
            Example(example_id=str(number), inputs={"question": f"{self._runs}/{number}?"}) for number in range(count)
        ]
        return await seconds_of(
            plan,
            examples,
            address=self._address,
            journal=self._folder / f"{self._runs}.sqlite",
            max_concurrency=IN_FLIGHT,
            timeout_s=120,
            calls=policy,
        )


@contextmanager
def bench(**provider: float) -> Iterator[tuple[Bench, Server]]:
    """Have a provider, and a pool that is warm."""
    with tempfile.TemporaryDirectory(prefix="dspex-") as name, serving(**provider) as server:
        folder = Path(name)
        environment = {BASE: server.base_url, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        os.environ.update(environment)
        with local_pool.lease(
            workers=WORKERS, slots=IN_FLIGHT, cwd=ROOT, runtime_root=folder / "pool", environment=environment
        ) as lease:
            one = Bench(lease.address, folder)
            one.seconds("AsksInProcess", 50)
            server.control(reset=True)
            yield one, server
        local_pool.stop(runtime_root=folder / "pool")


def evaluate_s(count: int) -> float:
    """Return how long `dspy.Evaluate` takes for as many trials of the same module, in as many threads."""
    import dspy

    from benchmarks._dspy_programs import Asks, said

    logging.getLogger("dspy").setLevel(logging.ERROR)
    data = [dspy.Example(question=f"evaluate {number}?").with_inputs("question") for number in range(count)]
    evaluate = dspy.Evaluate(devset=data, metric=said, num_threads=IN_FLIGHT)
    started = time.perf_counter()
    result = evaluate(Asks())
    if result.score != 100.0:
        msg = f"dspy.Evaluate scored {result.score}"
        raise RuntimeError(msg)
    return time.perf_counter() - started


def efficiency(case: str, latency_s: float, count: int, seconds: float) -> None:
    ideal_s = count * latency_s / IN_FLIGHT
    report(
        benchmark="providers",
        case=case,
        value=ideal_s / seconds,
        unit="ideal/actual",
        reference="ideal",
        reference_value=1.0,
        trials=count,
        seconds=round(seconds, 2),
    )


def limit(case: str, count: int, policy: CallPolicy | None) -> None:
    with bench(latency_s=0.3, requests_per_s=PER_S, burst=BURST) as (one, server):
        one.seconds("Asks", count, policy=policy)
        stats = server.stats()
    report(
        benchmark="providers",
        case=case,
        value=stats["answered"] / stats["active_s"],
        unit="calls/s",
        reference="permitted",
        reference_value=PER_S,
        refused=round(stats["refused"] / stats["requests"], 4),
        trials=count,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=providers", description=__doc__)
    parser.add_argument(
        "--trials", type=int, default=8_000, help="of the cases of 200 ms; of 2 s half as many, of limits a quarter"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the cases of 200 ms")
    arguments = parser.parse_args()
    count = arguments.trials
    with bench(latency_s=2.0, jitter=0.5) as (one, _):
        efficiency("2 s, HTTP", 2.0, count // 2, one.seconds("Asks", count // 2))
    with bench(latency_s=LATENCY_S, jitter=0.5) as (one, _):
        # First: `dspy.Evaluate` leaves its threads in this process.
        here, alone = [], []
        for _ in range(arguments.rounds):
            here.append(one.seconds("AsksInProcess", count))
            alone.append(_alone.seconds(count, processes=WORKERS, in_flight=IN_FLIGHT))
        ours, theirs = [], []
        for _ in range(arguments.rounds):
            ours.append(count / one.seconds("Asks", count))
            theirs.append(count / evaluate_s(count))
        report(
            benchmark="providers",
            case="200 ms, HTTP",
            value=median(ours),
            unit="calls/s",
            reference="dspy.Evaluate",
            reference_value=median(theirs),
            ratio=median(mine / other for mine, other in zip(ours, theirs, strict=True)),
            rounds=[round(rate) for rate in ours],
            reference_rounds=[round(rate) for rate in theirs],
        )
        efficiency("200 ms, in process", LATENCY_S, count, median(here))
        # What the library's own computing leaves of the ideal on this machine.
        efficiency("200 ms, in process, DSPy alone", LATENCY_S, count, median(alone))
    declared = CallPolicy(limits=(RateLimit(model="openai/*", requests_per_minute=60 * PER_S),))
    limit("declared limit", count // 4, declared)
    limit("discovered limit", count // 4, None)


if __name__ == "__main__":
    main()

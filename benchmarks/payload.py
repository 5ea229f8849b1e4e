"""Bytes per second of trials that are large: inputs of 1 KiB to 4 MiB, and outputs as large, journal on.

A MB is counted when it has come back: so many bytes of inputs and of outputs, from the client through the bridge to a
worker and back into the journal. Beside it, in the same rounds, the same bytes over two bare hops
(`benchmarks._ceiling`), which nobody encodes, decodes, compares or keeps. Values are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import _ceiling
from benchmarks._report import report
from benchmarks._runs import seconds_of
from benchmarks.throughput import ROOT, WORKERS
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec
from dspex_pipelines.wire.loop import run

PROGRAM = "benchmarks._programs:echo"
METRIC = "benchmarks._programs:whole"
KIB, MIB = 1 << 10, 1 << 20
SIZES = {"1 KiB": KIB, "32 KiB": 32 * KIB, "1 MiB": MIB, "4 MiB": 4 * MIB}
SLOTS = 256
MOST_TRIALS = 20_000
IN_FLIGHT_BYTES = 64 * MIB


def trials_per_s(address: str, folder: Path, *, size: int, count: int, window: int, generation: str) -> float:
    """Run *count* trials of *size* bytes each way into a fresh journal; return the rate."""
    data = os.urandom(size)
    plan = Plan(
        evaluation="payload",
        partition="all",
        dataset_digest="none",
        rows=count,
        program=ProgramSpec(entry_point=PROGRAM, version=program_version(PROGRAM, {})),
        metrics=(MetricSpec(entry_point=METRIC, version=metric_version(METRIC)),),
        space_json=ConfigurationSpace().to_json(),
        configurations=(Configuration({}),),
        generation=generation,
    )
    examples = [Example(example_id=f"{generation}-{number}", inputs={"x": data}) for number in range(count)]
    journal = folder / f"{generation}.sqlite"
    seconds = run(seconds_of(plan, examples, address=address, journal=journal, max_concurrency=window, timeout_s=60))
    for file in folder.glob(f"{journal.name}*"):
        file.unlink()
    return count / seconds


def measure(case: str, size: int, *, address: str, folder: Path, total: int, rounds: int) -> None:
    count = max(2, min(MOST_TRIALS, total // size))
    window = max(2 * WORKERS, min(WORKERS * SLOTS, IN_FLIGHT_BYTES // size))
    ours, bare = [], []
    with _ceiling.ceiling_pool(folder, workers=WORKERS, payload=size) as ceiling:
        trials_per_s(address, folder, size=size, count=2, window=2, generation=f"warm-{size}")
        for number in range(rounds):
            bare.append(run(_ceiling.trials_per_s(ceiling, count=count, window=window, payload=size)))
            generation = f"run-{size}-{number}"
            rate = trials_per_s(address, folder, size=size, count=count, window=window, generation=generation)
            ours.append(rate)
    both_mb = 2 * size / 1e6
    report(
        benchmark="payload",
        case=case,
        value=both_mb * median(ours),
        unit="MB/s",
        reference="raw ceiling",
        reference_value=both_mb * median(bare),
        trials_per_s=round(median(ours), 1),
        reference_trials_per_s=round(median(bare), 1),
        trials=count,
        in_flight=window,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=payload", description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="inputs of a round of a case, of 20,000 trials at most")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dspex-") as name:
        folder = Path(name)
        with local_pool.lease(workers=WORKERS, slots=SLOTS, cwd=ROOT, runtime_root=folder / "pool") as lease:
            for case, size in SIZES.items():
                measure(
                    case,
                    size,
                    address=lease.address,
                    folder=folder,
                    total=arguments.mib * MIB,
                    rounds=arguments.rounds,
                )
        local_pool.stop(runtime_root=folder / "pool")


if __name__ == "__main__":
    main()

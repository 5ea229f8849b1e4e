"""Trials per second and resident memory as an evaluation grows: a program that does nothing.

The trials are of one configuration, each with an example of its own, or of more (`--configurations`), which share them.
Each size runs in a client process of its own, from a data set file as a step reads it, through one pool of two
workers into a fresh journal. Runs of the reference size come before and after it, because a machine's speed changes
over minutes. Memory is the most that was resident; the reference's is that of its first runs, before the pool has
seen more. A data set is made outside of the client.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import blake2b
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

from benchmarks._report import report
from benchmarks._runs import CONFIGURATIONS, seconds_of
from benchmarks.throughput import ROOT, SLOTS, WORKERS, plan_of
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.trial import Example
from dspex_pipelines.orchestration.data.datasets import planned_examples, store_examples
from dspex_pipelines.wire.loop import run

SIZES = (1_000, 100_000, 1_000_000)
REFERENCE = 10_000
SAMPLED_S = 0.2
IDS: dict[str, Callable[[int], str]] = {
    "numbers": str,
    "digests": lambda number: blake2b(b"%d" % number, digest_size=16).hexdigest(),
}
ROLES = {"dspex_pipelines.bridge": "bridge", "dspex_pipelines.worker": "workers"}
MB = 1_000_000


class Run(NamedTuple):
    """What one size came to, once."""

    trials_per_s: float
    cpu_us: float
    """Processor time of all processes, for each trial."""
    memory: Mapping[str, float]
    """By role, the most that one of its processes had resident, in MB."""


def plan_over(folder: Path, count: int, configurations: int, ids: str, generation: str) -> Plan:
    """Return a plan of *count* trials, and make the data set that it names unless it is there."""
    rows = count // configurations
    known = folder / f"{rows}.digest"
    if not known.exists():
        examples = [Example(example_id=IDS[ids](number), inputs={"x": number}) for number in range(rows)]
        known.write_text(store_examples(examples, folder).digest)
    plan = plan_of("async", count, generation)
    return replace(
        plan, dataset_digest=known.read_text(), rows=rows, configurations=plan.configurations[:configurations]
    )


def client(took_s: SimpleQueue[tuple[float, float]], plan: Plan, address: str, folder: Path) -> None:
    """Run all trials of *plan* from the data set in *folder*; say how long they took, and this process's CPU."""
    cpu_s = time.process_time()
    seconds = seconds_of(
        plan,
        planned_examples(folder, plan),
        address=address,
        journal=folder / f"{plan.generation}.sqlite",
        max_concurrency=WORKERS * SLOTS,
        timeout_s=60,
    )
    wall_s = run(seconds)
    took_s.put((wall_s, time.process_time() - cpu_s))


def measured(plan: Plan, address: str, folder: Path, *, pool: psutil.Process) -> Run:
    """Run *plan* in a client process, and look at the memory of all meanwhile."""
    context = multiprocessing.get_context("spawn")
    took_s: SimpleQueue[tuple[float, float]] = context.SimpleQueue()
    process = context.Process(target=client, args=(took_s, plan, address, folder))
    cpu_s = cpu_s_of(pool)
    process.start()
    memory: dict[str, float] = {}
    while process.is_alive():
        assert process.pid is not None
        looked_at = [("client", psutil.Process(process.pid)), *parts(pool)]
        for role, one in looked_at:
            memory[role] = max(memory.get(role, 0.0), resident_mb(one))
        process.join(SAMPLED_S)
    if process.exitcode:
        msg = f"the client of {plan.total:,} trials ended with {process.exitcode}"
        raise RuntimeError(msg)
    for file in folder.glob(f"{plan.generation}.sqlite*"):
        file.unlink()
    wall_s, client_cpu_s = took_s.get()
    cpu_s = cpu_s_of(pool) - cpu_s + client_cpu_s
    return Run(plan.total / wall_s, cpu_s / plan.total * 1e6, memory)


def cpu_s_of(pool: psutil.Process) -> float:
    """Return what the pool's processes have used so far."""
    times = (process.cpu_times() for process in (pool, *pool.children(recursive=True)))
    return sum(one.user + one.system for one in times)


def parts(pool: psutil.Process) -> list[tuple[str, psutil.Process]]:
    """Return the bridge and the workers, by role."""
    found = [(ROLES.get(one.cmdline()[2]), one) for one in pool.children()]
    return [(role, one) for role, one in found if role]


def resident_mb(process: psutil.Process) -> float:
    """Return what is resident of a process now; 0 for one that has ended."""
    try:
        return process.memory_info().rss / MB
    except psutil.NoSuchProcess:
        return 0.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=growth", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="trials")
    parser.add_argument("--reference", type=int, default=REFERENCE, help="trials that the sizes are held against")
    parser.add_argument("--rounds", type=int, default=5, help="of the reference, before each size and after it")
    parser.add_argument(
        "--configurations",
        type=int,
        default=1,
        choices=range(1, CONFIGURATIONS + 1),
        metavar="N",
        help=f"1 to {CONFIGURATIONS}",
    )
    parser.add_argument("--ids", default="numbers", choices=list(IDS), help="of the examples: with or without an order")
    arguments = parser.parse_args()
    for size in (*arguments.sizes, arguments.reference):
        if size % arguments.configurations:
            parser.error(f"{size:,} trials cannot be shared by {arguments.configurations} configurations alike")
    with tempfile.TemporaryDirectory(prefix="dspex-") as name:
        folder = Path(name)
        with local_pool.lease(workers=WORKERS, slots=SLOTS, cwd=ROOT, runtime_root=folder / "pool") as lease:
            (status,) = local_pool.status(runtime_root=folder / "pool")
            pool = psutil.Process(status.pid)
            number = 0

            def once(count: int) -> Run:
                nonlocal number
                number += 1
                return measured(
                    plan_over(folder, count, arguments.configurations, arguments.ids, f"run-{number}"),
                    lease.address,
                    folder,
                    pool=pool,
                )

            once(min(1_000, arguments.reference))  # imports and first connections are not what is measured
            around = [[once(arguments.reference) for _ in range(arguments.rounds)]]
            first = {role: max(one.memory[role] for one in around[0]) for role in around[0][0].memory}
            for size in arguments.sizes:
                found = once(size)
                around.append([once(arguments.reference) for _ in range(arguments.rounds)])
                held = (*around[-2], *around[-1])
                rates = [one.trials_per_s for one in held]
                report(
                    benchmark="growth",
                    case=f"{size:,} trials",
                    value=found.trials_per_s,
                    unit="trials/s",
                    configurations=arguments.configurations,
                    ids=arguments.ids,
                    reference=f"{arguments.reference:,} trials",
                    reference_value=median(rates),
                    cpu_us=round(found.cpu_us, 1),
                    reference_cpu_us=round(median(one.cpu_us for one in held), 1),
                    reference_rounds=[round(rate) for rate in rates],
                )
                for role, most in found.memory.items():
                    report(
                        benchmark="growth",
                        case=f"{role} of {size:,} trials",
                        value=most,
                        unit="MB",
                        reference=f"{arguments.reference:,} trials",
                        reference_value=first[role],
                        grown_mb=round(most - first[role], 1),
                    )
        local_pool.stop(runtime_root=folder / "pool")


if __name__ == "__main__":
    main()

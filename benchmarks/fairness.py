"""What a small run has to wait for in a pool that a large one fills, and what runs of different weights get of one.

A trial waits 20 ms; the pool has 64 slots. The small run is timed from its first trial to its last recorded outcome,
alone and then while the large one is on; for the weights, the outcomes that two large runs record in the same seconds
are counted. Large runs are processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks._report import report
from benchmarks._runs import CONFIGURATIONS, plan_of, seconds_of
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.model.trial import Example
from dspex_pipelines.wire.loop import run

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
SLOTS = 32
WAIT_S = 0.02
WINDOW = 512
WEIGHT = 3
LOOK_S = 0.01


async def seconds(address: str, journal: Path, count: int, *, weight: int = 1) -> float:
    """Return how long a run of *count* trials takes."""
    plan = plan_of("benchmarks._programs:waits", count, journal.stem, evaluation="fairness")
    inputs = {"waits_s": [WAIT_S] * CONFIGURATIONS}
    examples = [Example(example_id=str(number), inputs=inputs) for number in range(count // CONFIGURATIONS)]
    return await seconds_of(
        plan, examples, address=address, journal=journal, max_concurrency=WINDOW, timeout_s=60, weight=weight
    )


@contextlib.contextmanager
def large(address: str, journal: Path, count: int, *, weight: int = 1) -> Iterator[None]:
    """Have a large run on."""
    command = [sys.executable, "-m", "benchmarks.fairness", "--large", address, str(journal), str(weight)]
    process = subprocess.Popen([*command, "--trials", str(count)], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while not recorded(journal):
            if process.poll() is not None:
                sys.exit("the large run ended before it was wanted to")
            run(asyncio.sleep(LOOK_S))
        yield
        if process.poll() is not None:
            sys.exit("the large run was over too early; give it more --trials")
    finally:
        process.terminate()
        process.wait()


def recorded(journal: Path) -> int:
    """Return how many outcomes there are."""
    if not journal.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True, timeout=30)) as opened:
        try:
            return opened.execute("SELECT count(*) FROM executions").fetchone()[0]
        except sqlite3.OperationalError:
            return 0  # not made yet


async def both_wait(address: str) -> None:
    """Return once more trials wait than one run has in flight."""
    async with PoolClient(address) as pool:
        while (await pool.status()).queue_depth <= WINDOW:
            await asyncio.sleep(LOOK_S)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=fairness", description=__doc__)
    parser.add_argument("--trials", type=int, default=100_000, help="of a large run, which is ended early")
    parser.add_argument("--small", type=int, default=100, help="trials of the small run")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5.0, help="in which outcomes are counted")
    parser.add_argument("--large", nargs=3, metavar=("ADDRESS", "JOURNAL", "WEIGHT"), help="be a large run")
    arguments = parser.parse_args()
    if arguments.large:
        address, journal, weight = arguments.large
        run(seconds(address, Path(journal), arguments.trials, weight=int(weight)))
        return
    with tempfile.TemporaryDirectory(prefix="dspex-") as name:
        folder = Path(name)
        with local_pool.lease(workers=WORKERS, slots=SLOTS, cwd=ROOT, runtime_root=folder / "pool") as lease:
            address = lease.address

            def small(case: str) -> list[float]:
                return [
                    run(seconds(address, folder / f"{case}-{number}.sqlite", arguments.small))
                    for number in range(arguments.rounds)
                ]

            small("warm")
            alone = small("alone")
            with large(address, folder / "large.sqlite", arguments.trials):
                beside = small("beside")
            report(
                benchmark="fairness",
                case=f"{arguments.small:,} trials beside {arguments.trials:,}",
                value=1000 * median(beside),
                unit="ms",
                reference="alone",
                reference_value=1000 * median(alone),
                rounds=[round(1000 * one) for one in beside],
                reference_rounds=[round(1000 * one) for one in alone],
            )
            heavy, light = folder / "heavy.sqlite", folder / "light.sqlite"
            with (
                large(address, heavy, arguments.trials, weight=WEIGHT),
                large(address, light, arguments.trials),
            ):
                run(both_wait(address))
                before = recorded(heavy), recorded(light)
                run(asyncio.sleep(arguments.seconds))
                after = recorded(heavy), recorded(light)
            of_heavy, of_light = ((now - then) / arguments.seconds for now, then in zip(after, before, strict=True))
            report(
                benchmark="fairness",
                case=f"weight {WEIGHT} beside 1",
                value=of_heavy,
                unit="trials/s",
                reference="weight 1",
                reference_value=of_light,
            )
        local_pool.stop(runtime_root=folder / "pool")


if __name__ == "__main__":
    main()

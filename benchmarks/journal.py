"""What the journal costs: trials per second with it and without, and its own work, small and at a million outcomes.

Trials of a program that does nothing go through a real pool, rounds with and without interleaved; without, nothing is
looked up, no thread writes, and outcomes count as done at once. Values are medians over the rounds; the ratio of
throughputs is the median over the rounds of the ratio within one, because a machine's speed changes over minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from statistics import median
from types import TracebackType
from typing import Any, cast
from unittest.mock import patch

import psutil

from benchmarks._report import report
from benchmarks.throughput import CONFIGURATIONS, ROOT, SLOTS, WORKERS, plan_of
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine import batch
from dspex_pipelines.engine.journal.journal import Entry, Journal
from dspex_pipelines.engine.journal.retention import ANY_SCORING, Retention, groups, size
from dspex_pipelines.model.outcome import TrialResult
from dspex_pipelines.model.payload import digest, encode
from dspex_pipelines.model.plan import Batch
from dspex_pipelines.model.trial import Example
from dspex_pipelines.wire.loop import run

SMALL = 10_000
GROUP = 1_000
PER_CONFIGURATION = 2_000
FIND_MS = 5.0
"""What a look-up may take."""
SCORING = digest(b"labels and metrics")


def outcomes(seed: str) -> Iterator[TrialResult]:
    """Yield results without end, as evaluations do: a configuration after the other, with ids that begin like it."""
    outputs, scores = encode(5), encode({"same": True})
    random = Random(seed)
    while True:
        configuration = random.randbytes(16)
        for number in range(PER_CONFIGURATION):
            yield TrialResult(
                trial_id=configuration[:2] + bytes([number // 1_000]) + random.randbytes(13),
                configuration_digest=configuration,
                session_version=3,
                worker="w-0123ab",
                queue_s=0.001,
                run_s=0.0001,
                outputs_payload=outputs,
                scores_payload=scores,
            )


def entries(seed: str, count: int) -> list[Entry]:
    return [Entry(SCORING, outcome) for outcome in islice(outcomes(seed), count)]


def record(journal: Journal, recorded: list[Entry]) -> None:
    for start in range(0, len(recorded), GROUP):
        journal.record("", recorded[start : start + GROUP])


def fill(journal: Journal, count: int) -> float:
    """Record so many outcomes; return the seconds it took."""
    started = time.perf_counter()
    stream = (Entry(SCORING, outcome) for outcome in islice(outcomes("filled"), count))
    while page := list(islice(stream, 5 * GROUP)):
        journal.record("", page)
    return time.perf_counter() - started


class NoJournal:
    """Knows nothing and keeps nothing."""

    def look_up(self, generation: str, wanted: Any, **_: Any) -> tuple[set[bytes], dict[bytes, Any]]:
        del generation, wanted
        return set(), {}

    def record(self, generation: str, recorded: Any, **_: Any) -> None:
        """Forget them."""


class NoRecorder:
    """Outcomes are done with as they come in."""

    def __init__(self, record: Any, *, durable: Callable[[list[Entry]], None], **_: Any) -> None:
        del record
        self._durable = durable

    def __enter__(self) -> NoRecorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    async def add(self, recorded: Iterable[Entry]) -> None:
        self._durable(list(recorded))


async def trials_per_s(
    address: str, journal: Journal | None, *, pool_pid: int, count: int, number: int
) -> tuple[float, float]:
    """Run *count* new trials; return how many a second, and the microseconds of CPU in all processes for each."""
    rows = range(count // CONFIGURATIONS)
    examples = [Example(example_id=f"{number}-{row}", inputs={"x": row}) for row in rows]
    plan = plan_of("async", count, "")
    async with PoolClient(address) as pool:
        cpu_s = cpu_s_of(pool_pid)
        done = await batch.run_batch(
            plan=plan,
            batch=Batch(start=0, stop=plan.total),
            examples=examples,
            pool=pool,
            journal=cast("Journal", NoJournal()) if journal is None else journal,
            max_concurrency=WORKERS * SLOTS,
            timeout_s=60,
        )
        cpu_s = cpu_s_of(pool_pid) - cpu_s
    if done.ran != count or done.failed:
        msg = f"{done.ran} of {count} trials ran, {done.failed} failed"
        raise RuntimeError(msg)
    return count / done.elapsed_s, cpu_s / count * 1e6


def cpu_s_of(pool_pid: int) -> float:
    """Return what this process and the pool's have used so far."""
    pool = psutil.Process(pool_pid)
    times = (process.cpu_times() for process in (psutil.Process(), pool, *pool.children(recursive=True)))
    return sum(time.user + time.system for time in times)


def measure_throughput(
    journals: dict[str, Journal], *, trials: int, rounds: int, folder: Path
) -> dict[str, list[tuple[float, float]]]:
    """Return what each round gave: without a journal, then with each."""
    found: dict[str, list[tuple[float, float]]] = {"without": [], **{name: [] for name in journals}}
    with local_pool.lease(workers=WORKERS, slots=SLOTS, cwd=ROOT, runtime_root=folder / "pool") as lease:
        number = 0
        (status,) = local_pool.status(runtime_root=folder / "pool")

        def once(name: str, count: int) -> tuple[float, float]:
            nonlocal number
            number += 1
            journal = journals.get(name)
            if journal is not None:
                return run(trials_per_s(lease.address, journal, pool_pid=status.pid, count=count, number=number))
            with patch.object(batch, "Recorder", NoRecorder):
                return run(trials_per_s(lease.address, None, pool_pid=status.pid, count=count, number=number))

        once("without", CONFIGURATIONS * 50)  # imports and first connections are not what is measured
        for turn in range(rounds):
            names = list(found)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                found[name].append(once(name, trials))
    local_pool.stop(runtime_root=folder / "pool")
    return found


def measure_record(journal: Journal, *, rows: int, rounds: int) -> tuple[float, float]:
    """Return rows a second, and the microseconds of CPU for each."""
    rates: list[float] = []
    cpus: list[float] = []
    for turn in range(rounds):
        recorded = entries(f"record-{turn}", rows)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        record(journal, recorded)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        rates.append(rows / wall_s)
        cpus.append(cpu_s / rows * 1e6)
    return median(rates), median(cpus)


def measure_find(journal: Journal, *, filled: int, times: int) -> list[float]:
    """Return the milliseconds that each look-up of a single trial took, all over the journal."""
    step = max(1, filled // times)
    wanted = [outcome.trial_id for outcome in islice(outcomes("filled"), 0, filled, step)]
    took: list[float] = []
    for trial_id in wanted:
        started = time.perf_counter()
        found = journal.find("", {trial_id: SCORING})
        took.append((time.perf_counter() - started) * 1e3)
        if list(found) != [trial_id]:
            msg = f"{trial_id.hex()} was not found"
            raise RuntimeError(msg)
    return took


def measure_retention(journal: Journal, *, filled: int) -> tuple[float, float, float]:
    """Return the seconds it takes to say what may go, to delete it, and to give its room back: every second outcome."""
    live = [(outcome.trial_id, ANY_SCORING) for outcome in islice(outcomes("filled"), 0, filled, 2)]
    marks = [time.perf_counter()]
    with Retention(journal, recorded_before=time.time()) as retention:
        groups(journal), size(journal)
        retention.keep("", live)
        stale = retention.unreferenced().executions
        marks.append(time.perf_counter())
        if retention.delete().executions != stale:
            msg = "what was deleted is not what was said"
            raise RuntimeError(msg)
        marks.append(time.perf_counter())
        retention.reclaim()
        marks.append(time.perf_counter())
    surveyed_s, deleted_s, reclaimed_s = (later - earlier for earlier, later in pairwise(marks))
    return surveyed_s, deleted_s, reclaimed_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=journal", description=__doc__)
    parser.add_argument("--outcomes", type=int, default=1_000_000, help="that the large journal holds")
    parser.add_argument("--trials", type=int, default=40_000, help="in a round of a case")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    rounds = arguments.rounds

    def say(case: str, value: float, unit: str, reference: str, reference_value: float, **more: Any) -> None:
        report(
            benchmark="journal",
            case=case,
            value=value,
            unit=unit,
            reference=reference,
            reference_value=reference_value,
            **more,
        )

    with (
        tempfile.TemporaryDirectory(prefix="dspex-") as path,
        Journal(str(Path(path) / "small.sqlite")) as small,
        Journal(str(Path(path) / "large.sqlite")) as large,
    ):
        filled = {"small": min(SMALL, arguments.outcomes), "large": arguments.outcomes}
        fill(small, filled["small"])
        fill_s = fill(large, filled["large"])
        with large.database.reading() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        per_outcome = size(large).data / filled["large"]

        journals = {"small": small, "large": large}
        found = measure_throughput(journals, trials=arguments.trials, rounds=rounds, folder=Path(path))
        rates = {name: [rate for rate, _ in took] for name, took in found.items()}
        cpus = {name: round(median(cpu for _, cpu in took), 1) for name, took in found.items()}
        without = median(rates["without"])
        for name in journals:
            say(
                f"throughput into {name}",
                median(rates[name]),
                "trials/s",
                "without journal",
                without,
                ratio=median(one / other for one, other in zip(rates[name], rates["without"], strict=True)),
                outcomes=filled[name],
                cpu_us=cpus[name],
                reference_cpu_us=cpus["without"],
                rounds=[round(rate) for rate in rates[name]],
                reference_rounds=[round(rate) for rate in rates["without"]],
            )
        for name, journal in journals.items():
            rate, cpu_us = measure_record(journal, rows=arguments.trials, rounds=rounds)
            say(
                f"record into {name}",
                rate,
                "rows/s",
                "trials/s without journal",
                without,
                outcomes=filled[name],
                cpu_us=round(cpu_us, 2),
            )
        took = measure_find(large, filled=filled["large"], times=1_000)
        say("find by id", median(took), "ms", "wanted", FIND_MS, outcomes=filled["large"], slowest=round(max(took), 3))
        steps = zip(("size", "prune", "reclaim"), measure_retention(large, filled=filled["large"]), strict=True)
        for case, step_s in steps:
            more = {"outcomes": filled["large"], "bytes_per_outcome": round(per_outcome)}
            say(case, step_s * 1e3, "ms", "filling it", fill_s * 1e3, **more)


if __name__ == "__main__":
    main()

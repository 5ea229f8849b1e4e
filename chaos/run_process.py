"""`python -m chaos.run_process FOLDER`: the run process, which runs what the journal lacks of the scenario in FOLDER.

It is what a Dagster step is without Dagster: it joins or starts the local pool and runs each plan as a batch. It ends
with `DONE` once nothing is missing, `POOL_LOST` when the pool is gone, and by the signal, or with `CANCELLED`, when it
is told to end.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from chaos.scenario import ROOT, Planned, Scenario
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.batch import run_batch
from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.errors import PoolUnreachable
from dspex_pipelines.model.plan import Batch
from dspex_pipelines.wire import loop

DONE, POOL_LOST, CANCELLED = 0, 3, 4
WORKERS = 2
SLOTS = 16
IDLE_S = 2.0
LOOK_S = 0.2
RECONNECT_S = 10.0
"""Shorter than is usual: a supervisor that was killed takes its bridge with it for good."""


def pool_root(folder: Path) -> Path:
    """Return where the pool of the scenario in *folder* lives; a socket's path is short."""
    return folder / "p"


def journal_file(folder: Path) -> Path:
    """Return the scenario's journal."""
    return folder / "journal.sqlite"


async def run(folder: Path, address: str, scenario: Scenario) -> None:
    """Run all plans at once, each as a client of its own."""
    planned = scenario.planned()
    total = sum(one.plan.total for one in planned)
    async with asyncio.TaskGroup() as group:
        for one in planned:
            first = one.part.after * total
            group.create_task(_run_one(folder, address, one, scenario.in_flight or one.part.max_concurrency, first))


async def _run_one(folder: Path, address: str, planned: Planned, in_flight: int, first: float) -> None:
    async with PoolClient(address, reconnect_s=RECONNECT_S) as pool:
        with Journal(str(journal_file(folder))) as journal:
            while journal.count() < first:
                await asyncio.sleep(LOOK_S)
            summary = await run_batch(
                plan=planned.plan,
                batch=Batch(start=0, stop=planned.plan.total),
                examples=planned.examples,
                pool=pool,
                journal=journal,
                max_concurrency=in_flight,
                timeout_s=planned.part.timeout_s,
            )
    print(f"{planned.part.name}: {summary}", flush=True)


def main() -> int:
    """Run the command line; return the exit code."""
    folder = Path(sys.argv[1])
    scenario = Scenario.from_json((folder / "scenario.json").read_text())
    code = DONE
    try:
        with local_pool.lease(
            workers=WORKERS, slots=SLOTS, idle_s=IDLE_S, cwd=ROOT, runtime_root=pool_root(folder)
        ) as lease:
            loop.run(run(folder, lease.address, scenario))
    except* PoolUnreachable as group:
        print(f"pool lost: {group.exceptions[0]}", flush=True)
        code = POOL_LOST
    except* (asyncio.CancelledError, KeyboardInterrupt):
        print("cancelled", flush=True)
        code = CANCELLED
    return code


if __name__ == "__main__":
    sys.exit(main())

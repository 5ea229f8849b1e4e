"""Runs every trial of a plan through a pool, journal on, and says how long that took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.batch import run_batch
from dspex_pipelines.engine.journal import Journal
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.trial import Example


async def seconds_of(
    plan: Plan,
    examples: Sequence[Example],
    *,
    address: str,
    journal: Path,
    max_concurrency: int,
    timeout_s: float,
    calls: CallPolicy | None = None,
) -> float:
    """Return how long it took, into a fresh journal; raises RuntimeError unless all trials ran and succeeded."""
    async with PoolClient(address) as pool:
        with Journal(str(journal)) as opened:
            done = await run_batch(
                plan=plan,
                batch=Batch(start=0, stop=plan.total),
                examples=examples,
                pool=pool,
                journal=opened,
                max_concurrency=max_concurrency,
                timeout_s=timeout_s,
                calls=calls,
            )
    if done.ran != plan.total or done.failed:
        msg = f"{done.ran} of {plan.total} trials ran, {done.failed} failed"
        raise RuntimeError(msg)
    return done.elapsed_s

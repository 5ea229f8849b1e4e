"""`dspex pool status`: the local pools that run, as each of them tells."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.local_pool import LocalPoolStatus
from dspex_pipelines.bridge.pool_status import ModelStatus, PoolStatus, ask_status
from dspex_pipelines.errors import DspexError, PoolUnreachable

ANSWER_S = 2.0
"""How long a pool has to answer; all are asked at once."""
_STYLES = {"paused": "yellow", "limited": "yellow", "down": "red", "given up": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPool:
    """A local pool, and what it answered."""

    pool: LocalPoolStatus
    status: PoolStatus | None
    problem: str = ""
    """Why there is no status."""


def ask_pools() -> tuple[AskedPool, ...]:
    """Return the local pools of this user that run, each with its answer or why there is none."""
    return asyncio.run(_ask(local_pool.status()))


async def _ask(pools: Sequence[LocalPoolStatus]) -> tuple[AskedPool, ...]:
    return tuple(await asyncio.gather(*(_ask_one(pool) for pool in pools)))


async def _ask_one(pool: LocalPoolStatus) -> AskedPool:
    try:
        return AskedPool(pool=pool, status=await ask_status(pool.address, within_s=ANSWER_S))
    except PoolUnreachable:
        return AskedPool(pool=pool, status=None, problem=f"it does not answer within {ANSWER_S:g} s")
    except DspexError as error:
        return AskedPool(pool=pool, status=None, problem=str(error))


def pool_document(asked: AskedPool) -> dict[str, Any]:
    """Return what is known of a pool as plain values."""
    document: dict[str, Any] = {"pid": asked.pool.pid, "address": asked.pool.address}
    if asked.status is None:
        return {**document, "problem": asked.problem}
    return {**document, **asdict(asked.status)}


def print_pool(asked: AskedPool, console: Console) -> None:
    """Print it for people."""
    pool, status = asked.pool, asked.status
    console.print(f"pid {pool.pid}  {pool.address}", soft_wrap=True)
    if status is None:
        console.print(Text(f"  {asked.problem}", style="yellow"), soft_wrap=True)
        return
    slots = sum(worker.slots for worker in status.workers)
    facts = [
        f"{len(status.workers)} workers with {slots:,} slots",
        f"{status.in_flight:,} in flight",
        f"{status.queue_depth:,} queued",
        f"{status.settled:,} done",
    ]
    if status.workers_lost:
        facts.append(f"{status.workers_lost:,} workers lost")
    if status.draining:
        facts.append("draining")
    console.print(f"  {', '.join(facts)}", soft_wrap=True)
    if status.models:
        console.print(_models(status.models), crop=False)


def _models(models: Sequence[ModelStatus]) -> Table:
    table = Table("model", "state", box=None, pad_edge=True)
    for name in ("in flight", "waiting", "per second", "granted", "refused", "failed", "paused for"):
        table.add_column(name, justify="right")
    for model in models:
        table.add_row(
            Text(model.model, overflow="fold"),
            Text(model.state, style=_STYLES.get(model.state, "")),
            f"{model.in_flight:,}" if model.window is None else f"{model.in_flight:,} of {model.window:,.0f}",
            f"{model.waiting:,}",
            "" if model.per_s is None else f"{model.per_s:,.3g}",
            f"{model.granted:,}",
            f"{model.refused:,}",
            f"{model.failed:,}",
            f"{model.paused_for_s:.1f} s" if model.paused_for_s > 0 else "",
        )
    return table

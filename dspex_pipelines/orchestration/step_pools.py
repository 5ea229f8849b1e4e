"""Dagster's pools of steps, whose limit holds although many claim at once, and in which nothing waits for ever."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from dagster import DagsterInstance
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from dspex_pipelines.bridge.locks import try_lock
from dspex_pipelines.orchestration.abandoned import end_abandoned_runs

_LOCK = "dspex_claims.lock"
_PATIENCE_S = 2.0
_TOLD_S = 1.0
_LOOK_S = 5.0
"""Between two looks at who has the places that others wait for."""


def claim_in_turn(instance: DagsterInstance, waits: Callable[[str, float], None] | None = None) -> None:
    """Have the steps that this process runs claim their place in a pool one after another.

    Dagster looks for a free place and takes it in two transactions, which in SQLite nothing keeps apart: of processes
    that claim at the same time several take the same place. They go by a lock of their instance's folder instead. And
    a step that asks while the last place is given back is put into a queue that nobody looks at any more; whoever asks
    again is let in where there is room. Places that runs of gone processes have, or are the next for, are given back.
    *waits* is told for what a step waits, and for how many seconds by now, each time that it asks in vain.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage) or "claim_concurrency_slot" in vars(storage):
        return
    claim, lock = storage.claim_concurrency_slot, Path(instance.root_directory) / _LOCK
    since: dict[tuple[str, str, str], float] = {}
    look_at = 0.0

    def in_turn(concurrency_key: str, run_id: str, step_key: str, priority: int | None = None) -> Any:
        nonlocal look_at
        asked = (concurrency_key, run_id, step_key)
        with _alone(lock):
            status = claim(*asked, priority)
            if not status.is_claimed and storage.has_unassigned_slots(concurrency_key):
                storage.assign_pending_steps([concurrency_key])
                status = claim(*asked, priority)
        now = time.monotonic()
        began = since.setdefault(asked, now)
        if status.is_claimed:
            del since[asked]
            return status
        if now >= look_at:
            look_at = now + _LOOK_S
            end_abandoned_runs(instance)
        if waits is not None and now - began >= _TOLD_S:
            waits(f"other runs have all places of the Dagster pool {concurrency_key}", now - began)
        return status

    storage.claim_concurrency_slot = in_turn


@contextlib.contextmanager
def _alone(path: Path) -> Generator[None]:
    with contextlib.ExitStack() as held:
        # Where nothing can be written, or somebody is held up, it is as in Dagster.
        with contextlib.suppress(OSError):
            try_lock(held.enter_context(path.open("a")), within_s=_PATIENCE_S)
        yield

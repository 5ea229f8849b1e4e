"""Dagster's pools of steps, whose limit holds although many claim at once, and in which nothing waits for ever."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from dagster import DagsterInstance
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from dspex_pipelines.bridge.locks import try_lock

_LOCK = "dspex_claims.lock"
_PATIENCE_S = 10.0


def claim_in_turn(instance: DagsterInstance) -> None:
    """Have the steps that this process runs claim their place in a pool one after another.

    Dagster looks for a free place and takes it in two transactions, which in SQLite nothing keeps apart: of processes
    that claim at the same time several take the same place. They go by a lock of their instance's folder instead. And
    a step that asks while the last place is given back is put into a queue that nobody looks at any more; whoever asks
    again is let in where there is room.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage) or "claim_concurrency_slot" in vars(storage):
        return
    claim, lock = storage.claim_concurrency_slot, Path(instance.root_directory) / _LOCK

    def in_turn(concurrency_key: str, *of: Any, **named: Any) -> Any:
        with _alone(lock):
            status = claim(concurrency_key, *of, **named)
            if status.is_claimed or not storage.has_unassigned_slots(concurrency_key):
                return status
            storage.assign_pending_steps([concurrency_key])
            return claim(concurrency_key, *of, **named)

    storage.claim_concurrency_slot = in_turn


@contextlib.contextmanager
def _alone(path: Path) -> Generator[None]:
    with contextlib.ExitStack() as held:
        # Where nothing can be written, or somebody is held up, it is as in Dagster.
        with contextlib.suppress(OSError):
            try_lock(held.enter_context(path.open("a")), within_s=_PATIENCE_S)
        yield

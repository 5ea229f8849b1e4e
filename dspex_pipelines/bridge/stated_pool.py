"""A pool that stays, at an address that is stated: here in the foreground, or left behind.

It is listed and ended as local pools are, and has a folder as they have.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import secrets
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.addresses import check_free, socket_path
from dspex_pipelines.bridge.local_pool import LocalPoolStatus
from dspex_pipelines.bridge.locks import LOOK_S, try_lock
from dspex_pipelines.bridge.pool_status import ask_status
from dspex_pipelines.bridge.supervisor import Supervisor
from dspex_pipelines.engine.recycling import Recycling
from dspex_pipelines.engine.worker_options import SLOTS, check_slots
from dspex_pipelines.errors import DspexError, InvalidValue, PoolUnreachable

JOINED_WITHIN_S = 30.0
"""Workers that take longer join a pool that has been left running already."""
_GLANCE_S = 1.0
"""Much longer than anybody takes to look whether a pool is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedPool:
    """What a pool is to be. Raises `InvalidValue` for what cannot be."""

    address: str
    """``unix:/path``, or a loopback ``host:port``; port 0 is any free one."""
    workers: int = 0
    """0: one for each core."""
    slots: int = SLOTS
    idle_s: float = 0.0
    """Seconds without a client after which it ends; 0: it stays for ever."""
    recycling: Recycling = field(default_factory=Recycling)

    def __post_init__(self) -> None:
        local_pool.check_workers(self.workers)
        check_slots(self.slots)
        if not 0 <= self.idle_s < math.inf:
            raise InvalidValue(field="idle_s", value=self.idle_s, fix="give seconds, or 0 for a pool that stays")
        if path := socket_path(self.address):
            # Who uses it may be in another folder.
            object.__setattr__(self, "address", f"unix:{path.absolute()}")


def run_here(
    pool: StatedPool, tell: Callable[[Mapping[str, object]], None], *, runtime_root: Path | None = None
) -> int:
    """Run the pool in this process until it is told to end, and return its exit code.

    *tell* is told what `Supervisor.run` says, and at first where its `log` is. Raises `InvalidValue` for an address
    that is in use or may not be served.
    """
    with _taken(pool, runtime_root) as (runtime_dir, _):
        tell({"log": str(runtime_dir / "pool.log")})
        supervisor = Supervisor(
            runtime_dir=runtime_dir,
            workers=pool.workers or os.cpu_count() or 1,
            slots=pool.slots,
            idle_s=pool.idle_s or math.inf,
            recycling=pool.recycling,
            address=pool.address,
            drains=True,
        )
        return supervisor.run(tell)


def leave_running(pool: StatedPool, *, runtime_root: Path | None = None) -> LocalPoolStatus:
    """Start the pool in a session of its own, and return once its workers have joined it, or `JOINED_WITHIN_S` later.

    Raises `InvalidValue` as `run_here` does, and `DspexError` when it does not start.
    """
    with _taken(pool, runtime_root) as (runtime_dir, lock):
        workers = pool.workers or os.cpu_count() or 1
        options = local_pool.pool_options(workers, pool.slots, pool.idle_s or math.inf, pool.recycling)
        try:
            local_pool.start_supervisor(runtime_dir, [*options, "--address", pool.address], held=(lock.fileno(),))
        except PoolUnreachable as error:
            raise DspexError(f"the pool did not start: {error.reason}") from error
        started = local_pool.running(runtime_dir)
        if started is not None:
            with contextlib.suppress(PoolUnreachable):
                asyncio.run(_joined(started.address, workers))
            started = local_pool.running(runtime_dir)
        if started is None:
            raise DspexError(f"the pool ended as soon as it was up; see {runtime_dir / 'pool.log'}")
        return started


async def _joined(address: str, workers: int) -> None:
    """Return once so many have joined, or time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(JOINED_WITHIN_S):
            while len((await ask_status(address, within_s=JOINED_WITHIN_S)).workers) < workers:
                await asyncio.sleep(LOOK_S)


@contextlib.contextmanager
def _taken(pool: StatedPool, runtime_root: Path | None) -> Generator[tuple[Path, IO[str]]]:
    """Make the pool's folder and hold its lock."""
    check_free(pool.address)
    runtime_dir = local_pool.made_runtime_dir(runtime_root or local_pool.default_root(), _name(pool.address))
    with (runtime_dir / "pool.lock").open("a") as lock:
        if not try_lock(lock, within_s=_GLANCE_S):
            fix = "a pool is starting or ending there; try again, or give another"
            raise InvalidValue(field="address", value=pool.address, fix=fix)
        yield runtime_dir, lock


def _name(address: str) -> str:
    # Any number of pools may ask for any free port.
    told_apart = address + secrets.token_hex(4) if address.endswith(":0") else address
    return f"at-{hashlib.blake2b(told_apart.encode(), digest_size=6).hexdigest()}"

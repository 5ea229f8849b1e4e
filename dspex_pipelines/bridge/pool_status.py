"""Who works in a pool and how much there is to do, as a client sees it."""

from __future__ import annotations

from dataclasses import dataclass

from dspex.v1 import pool_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker of a pool."""

    worker_id: str
    pid: int
    slots: int
    in_flight: int
    done: int
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """Who works in a pool and how much there is to do."""

    package_version: str
    workers: tuple[WorkerStatus, ...]
    queue_depth: int
    in_flight: int
    sessions: int
    clients: int
    settled: int
    workers_lost: int
    draining: bool


def status_from_wire(status: pool_pb2.PoolStatus) -> PoolStatus:
    """Return the value of a status message."""
    return PoolStatus(
        package_version=status.package_version,
        workers=tuple(
            WorkerStatus(
                worker_id=worker.worker_id,
                pid=worker.pid,
                slots=worker.slots,
                in_flight=worker.in_flight,
                done=worker.done,
                draining=worker.draining,
            )
            for worker in status.workers
        ),
        queue_depth=status.queue_depth,
        in_flight=status.in_flight,
        sessions=status.sessions,
        clients=status.clients,
        settled=status.settled,
        workers_lost=status.workers_lost,
        draining=status.draining,
    )

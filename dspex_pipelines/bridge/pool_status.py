"""Who works in a pool and how much there is to do, as a client sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from dspex.v1 import pool_pb2, pool_pb2_grpc
from dspex_pipelines.bridge.translation import translate
from dspex_pipelines.wire.codec import CHANNEL_OPTIONS, PROTOCOL_VERSION


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
class ModelStatus:
    """How calls to one model go, for everybody in the pool together."""

    model: str
    state: str
    """``open``, ``probing the limit``, ``limited``, ``paused``, ``down`` or ``given up``."""
    waiting: int
    in_flight: int
    granted: int
    refused: int
    """Calls that the provider refused, because of a limit or because it is overloaded."""
    failed: int
    window: float | None
    """Most calls in flight; None for no bound."""
    per_s: float | None
    """Most calls granted per second; None where they are not paced."""
    paused_for_s: float


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
    models: tuple[ModelStatus, ...] = ()


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
        models=tuple(
            ModelStatus(
                model=model.model,
                state=model.state,
                waiting=model.waiting,
                in_flight=model.in_flight,
                granted=model.granted,
                refused=model.refused,
                failed=model.failed,
                window=model.window or None,
                per_s=model.per_s or None,
                paused_for_s=model.paused_for_s,
            )
            for model in status.models
        ),
    )


async def ask_status(address: str, *, within_s: float) -> PoolStatus:
    """Return the status of the pool at *address*, without being a client of it.

    Raises `PoolUnreachable` where there is no answer in time, and `ProtocolMismatch` when another version answers.
    """
    request = pool_pb2.GetPoolRequest(protocol_version=PROTOCOL_VERSION)
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub: Any = pool_pb2_grpc.PoolServiceStub(channel)
        try:
            return status_from_wire((await stub.GetPool(request, timeout=within_s)).status)
        except grpc.aio.AioRpcError as error:
            raise translate(error, address=address, waited_s=within_s) from error

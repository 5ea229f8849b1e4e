"""The bridge process: the services on one address, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dspex.v1 import (
    execution_pb2,
    execution_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from dspex_pipelines.bridge.addresses import check_address, socket_path
from dspex_pipelines.bridge.hub import Hub
from dspex_pipelines.bridge.refusals import ParsedRequests
from dspex_pipelines.bridge.services import ExecutionService, PoolService, WorkerService
from dspex_pipelines.bridge.session_service import SessionService
from dspex_pipelines.bridge.sessions import SessionLimits, SessionStore
from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.wire.codec import SERVER_OPTIONS

CREDIT_LIMIT = 16_384
HEARTBEAT_TIMEOUT_S = 10.0
STOP_S = 2.0
DRAINED_LOOK_S = 0.05
SESSIONS_S = 30.0
"""How often at least it is looked for sessions that nobody uses."""
OPTIONS: list[tuple[str, int]] = [
    *SERVER_OPTIONS,
    # One process owns the address: a second one must fail, not share the port.
    ("grpc.so_reuseport", 0),
    # Who connects and does not speak HTTP/2, or opens calls without end, keeps no more than this.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_concurrent_streams", 1_024),
]


class Bridge:
    """`SessionStore` and dispatcher behind gRPC. `async with` serves; leaving closes every stream.

    *tell* is told what a supervisor needs to know. Raises `InvalidValue` for an address that may not be served: a
    socket path that is too long, or TCP that is not loopback.
    """

    def __init__(
        self,
        address: str,
        *,
        allow: tuple[str, ...] = ("*",),
        credit_limit: int = CREDIT_LIMIT,
        heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S,
        session_limits: SessionLimits | None = None,
        tell: Callable[[Mapping[str, object]], None] = lambda _: None,
    ) -> None:
        check_address(address)
        self.address = address
        self._allow = allow
        self._credit_limit = credit_limit
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self.hub = Hub(dispatcher=Dispatcher(), sessions=SessionStore(session_limits), tell=tell)
        self._server: grpc.aio.Server | None = None
        self._watches: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Bridge:
        server = grpc.aio.server(options=OPTIONS, interceptors=[ParsedRequests()])
        hub = self.hub
        session_pb2_grpc.add_SessionServiceServicer_to_server(SessionService(hub, self._allow), server)
        execution_pb2_grpc.add_ExecutionServiceServicer_to_server(
            ExecutionService(hub, credit_limit=self._credit_limit), server
        )
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerService(hub), server)
        aio_health: Any = health.aio  # pyright: ignore[reportAttributeAccessIssue] - not in its stubs
        checks = aio_health.HealthServicer()
        pool_pb2_grpc.add_PoolServiceServicer_to_server(
            PoolService(hub, on_drained=checks.enter_graceful_shutdown), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        ours = (session_pb2, execution_pb2, worker_pb2, pool_pb2)
        names = [service.full_name for module in ours for service in module.DESCRIPTOR.services_by_name.values()]
        for name in names:
            await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        path = socket_path(self.address)
        if path is not None:
            path.unlink(missing_ok=True)
        before = os.umask(0o177)  # a Unix socket is its owner's only, from the first moment
        try:
            port = server.add_insecure_port(self.address)
        except RuntimeError as error:
            fix = f"it is in use, or cannot be listened at: {error}"
            raise InvalidValue(field="address", value=self.address, fix=fix) from error
        finally:
            os.umask(before)
        if path is None:
            self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await server.start()
        await checks.set("", health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        self._watches = [
            asyncio.create_task(self._watch_heartbeats()),
            asyncio.create_task(self._watch_sessions()),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def drain(self) -> None:
        """Accept no more trials; return once those that were accepted are answered."""
        self.hub.draining = True
        while not self.hub.is_idle:
            await asyncio.sleep(DRAINED_LOOK_S)

    def fail(self, reason: str) -> None:
        """Tell every client, those that come later included, that the pool gives up and why."""
        self.hub.fail(reason)

    async def close(self) -> None:
        """End every stream and remove the socket; safe to call twice."""
        server, self._server = self._server, None
        if server is None:
            return
        for watch in self._watches:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        self.hub.close()
        await server.stop(STOP_S)
        if path := socket_path(self.address):
            path.unlink(missing_ok=True)

    async def _watch_heartbeats(self) -> None:
        """A worker that is silent for too long is lost, whatever its connection says."""
        while True:
            await asyncio.sleep(self._heartbeat_timeout_s / 4)
            oldest = time.monotonic() - self._heartbeat_timeout_s
            for link in list(self.hub.workers.values()):
                if link.last_seen < oldest:
                    self.hub.inspect(link, f"it was silent for {self._heartbeat_timeout_s:g} s")

    async def _watch_sessions(self) -> None:
        """Close the sessions that nobody uses any more."""
        interval_s = min(SESSIONS_S, self.hub.sessions.limits.ttl_s / 4)
        while True:
            self.hub.expire_sessions(time.monotonic())
            await asyncio.sleep(interval_s)

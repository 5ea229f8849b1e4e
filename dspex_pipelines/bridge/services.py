"""The gRPC services: each translates between the wire and the hub, and decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio

import dspex_pipelines
from dspex.v1 import (
    execution_pb2,
    execution_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    types_pb2,
    worker_pb2,
    worker_pb2_grpc,
)
from dspex_pipelines.bridge.hub import ClientLink, Hub
from dspex_pipelines.bridge.sessions import Snapshot
from dspex_pipelines.errors import DspexError, InvalidValue, UnknownSession, VersionConflict
from dspex_pipelines.model.payload import decode
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.wire.codec import (
    HEARTBEAT_S,
    PROTOCOL_VERSION,
    metric_from_wire,
    metric_to_wire,
    program_from_wire,
    program_to_wire,
)
from dspex_pipelines.wire.frames import grown

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


async def refuse(context: Context, error: DspexError) -> NoReturn:
    """End a call with the status and the facts (as JSON) that the client turns into the same error."""
    match error:
        case InvalidValue():
            code = grpc.StatusCode.INVALID_ARGUMENT
            facts: dict[str, Any] = {"field": error.field, "value": str(error.value), "fix": error.fix}
        case VersionConflict():
            code = grpc.StatusCode.ABORTED
            facts = {"session_id": error.session_id, "expected": error.expected, "actual": error.actual}
        case UnknownSession():
            code = grpc.StatusCode.NOT_FOUND
            facts = {"session_id": error.session_id, "version": error.version}
        case _:
            code, facts = grpc.StatusCode.INVALID_ARGUMENT, {"message": str(error)}
    await context.abort(code, json.dumps(facts))
    raise AssertionError("abort does not return")


async def check_protocol(context: Context, theirs: int) -> None:
    """End the call when the other end speaks another protocol version."""
    if theirs != PROTOCOL_VERSION:
        facts = json.dumps({"protocol_version": PROTOCOL_VERSION})
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, facts)


class SessionService(session_pb2_grpc.SessionServiceServicer):
    """Sessions by name of the wire; only entry points that the allow-list admits are opened."""

    def __init__(self, hub: Hub, allow: Sequence[str]) -> None:
        self._hub = hub
        self._allow = tuple(allow)

    async def OpenSession(  # noqa: N802 - gRPC's name
        self, request: session_pb2.OpenSessionRequest, context: Context
    ) -> session_pb2.OpenSessionResponse:
        """Register a program, its metrics and its space."""
        for entry_point in (request.program.entry_point, *(metric.entry_point for metric in request.metrics)):
            if not any(fnmatch.fnmatchcase(entry_point, pattern) for pattern in self._allow):
                reason = f"this pool runs only {', '.join(self._allow)}; start it with another --allow"
                facts = json.dumps({"entry_point": entry_point, "reason": reason})
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, facts)
        try:
            session = self._hub.sessions.open(
                program_from_wire(request.program),
                [metric_from_wire(metric) for metric in request.metrics],
                ConfigurationSpace.from_json(request.space) if request.space else None,
            )
        except DspexError as error:
            await refuse(context, error)
        return session_pb2.OpenSessionResponse(session_id=session.session_id)

    async def SetVariables(  # noqa: N802
        self, request: session_pb2.SetVariablesRequest, context: Context
    ) -> session_pb2.SetVariablesResponse:
        """Make a new version, all values or none."""
        expected = request.expected_version if request.HasField("expected_version") else None
        try:
            values = decode(request.values) or {}
            if not isinstance(values, dict):
                raise InvalidValue(field="values", value=values, fix="send a msgpack map of names to values")
            snapshot = self._hub.sessions.set_variables(
                request.session_id, values, expected_version=expected, replace=request.replace
            )
        except DspexError as error:
            await refuse(context, error)
        return session_pb2.SetVariablesResponse(version=snapshot.version, digest=snapshot.digest)

    async def GetSession(  # noqa: N802
        self, request: session_pb2.GetSessionRequest, context: Context
    ) -> session_pb2.GetSessionResponse:
        """Return a session and one of its versions."""
        try:
            session = self._hub.sessions.session(request.session_id)
            snapshot = None
            if session.newest:
                snapshot = self._hub.sessions.snapshot(request.session_id, request.version)
        except DspexError as error:
            await refuse(context, error)
        return session_pb2.GetSessionResponse(
            session=types_pb2.Session(
                session_id=session.session_id,
                program=program_to_wire(session.program),
                metrics=[metric_to_wire(metric) for metric in session.metrics],
            ),
            snapshot=None if snapshot is None else _snapshot_to_wire(snapshot),
        )

    async def WatchSession(  # noqa: N802
        self, request: session_pb2.WatchSessionRequest, context: Context
    ) -> AsyncIterator[session_pb2.WatchSessionResponse]:
        """Stream the newest version now, and each time it has changed; the stream ends with the session."""
        told: int | None = None
        try:
            while True:
                session = self._hub.sessions.session(request.session_id)
                changed = session.changed
                if told is None:
                    told = 0
                    # Before there is a version: the caller knows that it misses nothing from here on.
                    await context.send_initial_metadata(())
                elif session.newest != told:
                    told = session.newest
                    snapshot = self._hub.sessions.snapshot(request.session_id)
                    yield session_pb2.WatchSessionResponse(snapshot=_snapshot_to_wire(snapshot))
                else:
                    await changed.wait()
        except UnknownSession as error:
            if told is None:
                await refuse(context, error)

    async def CloseSession(  # noqa: N802
        self, request: session_pb2.CloseSessionRequest, context: Context
    ) -> session_pb2.CloseSessionResponse:
        """Close a session; its trials in flight are finished."""
        try:
            self._hub.close_session(request.session_id)
        except DspexError as error:
            await refuse(context, error)
        return session_pb2.CloseSessionResponse()


class ExecutionService(execution_pb2_grpc.ExecutionServiceServicer):
    """Trials in, outcomes out."""

    def __init__(self, hub: Hub, *, credit_limit: int) -> None:
        self._hub = hub
        self._credit_limit = credit_limit

    async def ExecuteProgram(  # noqa: N802
        self, request: execution_pb2.ExecuteProgramRequest, context: Context
    ) -> execution_pb2.ExecuteProgramResponse:
        """Run one trial, through the same dispatcher as all others."""
        link = self._hub.connect()
        try:
            self._hub.submit(link, [request.trial])
            while not link.outcomes:
                if link.gone:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the pool is shutting down")
                link.wake.clear()
                await link.wake.wait()
            return execution_pb2.ExecuteProgramResponse(outcome=link.outcomes.popleft())
        finally:
            self._hub.disconnect(link)

    async def ExecutePrograms(  # noqa: N802  # pyright: ignore[reportIncompatibleMethodOverride] - it writes
        self,
        request_iterator: AsyncIterator[execution_pb2.ExecuteProgramsRequest],
        context: Context,
    ) -> None:
        """Exchange frames until the client goes."""
        first = await anext(aiter(request_iterator), None)
        if first is None:
            return
        await check_protocol(context, first.protocol_version)
        link = self._hub.connect()
        reader: asyncio.Task[None] | None = None
        try:
            await context.write(
                execution_pb2.ExecuteProgramsResponse(
                    protocol_version=PROTOCOL_VERSION, credit_limit=self._credit_limit
                )
            )
            reader = asyncio.create_task(self._read(link, first, request_iterator))
            reader.add_done_callback(lambda _: link.wake.set())
            while not reader.done() and not link.gone and not self._hub.failing:
                if not link.outcomes:
                    link.wake.clear()
                    await link.wake.wait()
                if link.outcomes:
                    await grown(link.outcomes)
                    await context.write(link.next_frame())
            if self._hub.failing:
                await context.abort(grpc.StatusCode.ABORTED, self._hub.failing)
            if reader.done() and reader.exception() is not None:
                facts = f"more than {self._credit_limit} trials sent and not committed"
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, facts)
        finally:
            await _stop(reader)
            self._hub.disconnect(link)

    async def _read(
        self,
        link: ClientLink,
        first: execution_pb2.ExecuteProgramsRequest,
        requests: AsyncIterator[execution_pb2.ExecuteProgramsRequest],
    ) -> None:
        self._take(link, first)
        async for request in requests:
            self._take(link, request)

    def _take(self, link: ClientLink, request: execution_pb2.ExecuteProgramsRequest) -> None:
        link.uncommitted = max(0, link.uncommitted - request.committed)
        if link.uncommitted + len(request.trials) > self._credit_limit:
            raise _OverCredit
        if request.trials:
            self._hub.submit(link, request.trials)
        if request.cancel_ids:
            self._hub.cancel(link, request.cancel_ids)


class _OverCredit(Exception):
    """A client has sent more than it may."""


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """The stream that a worker holds."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def Attach(  # noqa: N802  # pyright: ignore[reportIncompatibleMethodOverride] - it writes
        self, request_iterator: AsyncIterator[worker_pb2.AttachRequest], context: Context
    ) -> None:
        """Send trials and take outcomes until either end goes."""
        first = await anext(aiter(request_iterator), None)
        if first is None:
            return
        hello = first.hello
        await check_protocol(context, hello.protocol_version)
        try:
            link = self._hub.attach(hello)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        reason = "its stream ended"
        reader: asyncio.Task[None] | None = None
        try:
            welcome = worker_pb2.WorkerWelcome(protocol_version=PROTOCOL_VERSION, heartbeat_s=HEARTBEAT_S)
            await context.write(worker_pb2.AttachResponse(welcome=welcome))

            async def read() -> None:
                async for message in request_iterator:
                    self._hub.heard(link, message)

            reader = asyncio.create_task(read())
            reader.add_done_callback(lambda _: link.wake.set())
            while not reader.done() and not link.gone:
                await grown(link.trials)
                frame = link.next_frame()
                if frame is None:
                    link.wake.clear()
                    await link.wake.wait()
                else:
                    await context.write(frame)
            if reader.done() and not reader.cancelled() and (error := reader.exception()):
                reason = f"its stream broke: {error}"
        finally:
            await _stop(reader)
            self._hub.lose(link, reason)


class PoolService(pool_pb2_grpc.PoolServiceServicer):
    """The pool as a whole."""

    def __init__(self, hub: Hub, *, on_drained: Callable[[], None]) -> None:
        self._hub = hub
        self._on_drained = on_drained

    async def GetPool(  # noqa: N802
        self, request: pool_pb2.GetPoolRequest, context: Context
    ) -> pool_pb2.GetPoolResponse:
        """Return the pool's status; also the handshake of clients."""
        await check_protocol(context, request.protocol_version)
        return pool_pb2.GetPoolResponse(status=self._status())

    async def WatchPool(  # noqa: N802
        self, request: pool_pb2.WatchPoolRequest, context: Context
    ) -> AsyncIterator[pool_pb2.WatchPoolResponse]:
        """Stream the status at an interval."""
        del context
        interval_s = max(0.05, request.interval_s or 1.0)
        while not self._hub.closing.is_set():
            yield pool_pb2.WatchPoolResponse(status=self._status())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hub.closing.wait(), interval_s)

    async def Drain(  # noqa: N802
        self, request: pool_pb2.DrainRequest, context: Context
    ) -> pool_pb2.DrainResponse:
        """Accept no new trials; those accepted are finished."""
        del request, context
        self._hub.draining = True
        self._on_drained()
        return pool_pb2.DrainResponse(status=self._status())

    def _status(self) -> pool_pb2.PoolStatus:
        hub = self._hub
        stats = hub.dispatcher.stats()
        return pool_pb2.PoolStatus(
            protocol_version=PROTOCOL_VERSION,
            package_version=dspex_pipelines.__version__,
            workers=[
                pool_pb2.WorkerStatus(
                    worker_id=worker_id,
                    pid=hub.workers[worker_id].pid if worker_id in hub.workers else 0,
                    slots=worker.slots,
                    in_flight=worker.in_flight,
                    done=worker.done,
                    draining=worker.draining,
                    quarantine=worker.quarantine,
                )
                for worker_id, worker in stats.workers.items()
            ],
            queue_depth=stats.queue_depth + stats.backing_off + stats.suspects,
            in_flight=stats.in_flight,
            sessions=len(hub.sessions),
            clients=len(hub.clients),
            settled=stats.settled,
            workers_lost=hub.workers_lost,
            draining=hub.draining,
        )


def _snapshot_to_wire(snapshot: Snapshot) -> types_pb2.Snapshot:
    return types_pb2.Snapshot(
        session_id=snapshot.session_id,
        version=snapshot.version,
        values=snapshot.values,
        digest=snapshot.digest,
    )


async def _stop(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

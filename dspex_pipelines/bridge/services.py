"""Trials, workers and the pool over gRPC: each service translates between the wire and the hub, and decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

import dspex_pipelines
from dspex.v1 import (
    execution_pb2,
    execution_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from dspex_pipelines.bridge.hub import ClientLink, Hub
from dspex_pipelines.bridge.refusals import Context, check_protocol, end, parsed
from dspex_pipelines.model.limits import MOST_WEIGHT
from dspex_pipelines.wire.codec import HEARTBEAT_S, PROTOCOL_VERSION
from dspex_pipelines.wire.frames import grown

HELLO_S = 30.0
"""Whoever opens a stream and says nothing for so long is hung up on."""
_parse_execute = execution_pb2.ExecuteProgramsRequest.FromString
_parse_attach = worker_pb2.AttachRequest.FromString


class ExecutionService(execution_pb2_grpc.ExecutionServiceServicer):
    """Trials in, outcomes out."""

    def __init__(self, hub: Hub, *, credit_limit: int) -> None:
        self._hub = hub
        self._credit_limit = credit_limit

    async def ExecuteProgram(  # noqa: N802 - gRPC's name
        self, request: execution_pb2.ExecuteProgramRequest, context: Context
    ) -> execution_pb2.ExecuteProgramResponse:
        """Run one trial, through the same dispatcher as all others."""
        link = self._hub.connect()
        try:
            self._hub.submit(link, [request.trial], request.ByteSize())
            while not link.outcomes:
                if self._hub.failing:
                    await end(context, grpc.StatusCode.ABORTED, self._hub.failing)
                if link.gone:
                    await end(context, grpc.StatusCode.UNAVAILABLE, "the pool is shutting down")
                link.wake.clear()
                await link.wake.wait()
            return execution_pb2.ExecuteProgramResponse(outcome=link.outcomes.popleft())
        finally:
            self._hub.disconnect(link)

    async def ExecutePrograms(  # noqa: N802  # pyright: ignore[reportIncompatibleMethodOverride] - it writes
        self,
        request_iterator: AsyncIterator[bytes],
        context: Context,
    ) -> None:
        """Exchange frames until the client goes."""
        data = await _first(request_iterator, context)
        first = await parsed(context, _parse_execute, data, "ExecutePrograms")
        await check_protocol(context, first.protocol_version)
        hub = self._hub
        link = hub.connect(min(first.weight, MOST_WEIGHT) or 1)
        reader: asyncio.Task[None] | None = None
        try:
            await context.write(
                execution_pb2.ExecuteProgramsResponse(
                    protocol_version=PROTOCOL_VERSION, credit_limit=self._credit_limit
                )
            )
            reader = asyncio.create_task(self._read(link, data, request_iterator))
            reader.add_done_callback(lambda _: link.wake.set())
            while not reader.done() and not link.gone and not hub.failing:
                if not link.outcomes:
                    link.wake.clear()
                    await link.wake.wait()
                if link.outcomes:
                    await grown(link.outcomes)
                    await context.write(link.next_frame())
                    hub.has_read(link)
            if hub.failing:
                await end(context, grpc.StatusCode.ABORTED, hub.failing)
            await _end_as_told(reader, context)
        finally:
            await _stop(reader)
            hub.disconnect(link)

    async def _read(self, link: ClientLink, first: bytes, requests: AsyncIterator[bytes]) -> None:
        self._take(link, first)
        async for data in requests:
            self._take(link, data)
            if link.held.is_full:
                # Then its transport fills up, and then the client waits.
                await link.has_room()

    def _take(self, link: ClientLink, data: bytes) -> None:
        request = _parsed_frame(_parse_execute, data)
        # What has not been answered and read cannot have been committed.
        link.uncommitted = max(len(link.live) + len(link.outcomes), link.uncommitted - request.committed)
        if link.uncommitted + len(request.trials) > self._credit_limit:
            raise _Broken(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {self._credit_limit} trials sent and not committed"
            )
        if request.trials:
            self._hub.submit(link, request.trials, len(data))
        if request.cancel_ids:
            self._hub.cancel(link, request.cancel_ids)


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """The stream that a worker holds."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def Attach(  # noqa: N802  # pyright: ignore[reportIncompatibleMethodOverride] - it writes
        self, request_iterator: AsyncIterator[bytes], context: Context
    ) -> None:
        """Send trials and take outcomes until either end goes."""
        data = await _first(request_iterator, context)
        hello = (await parsed(context, _parse_attach, data, "Attach")).hello
        await check_protocol(context, hello.protocol_version)
        try:
            link = self._hub.attach(hello)
        except ValueError as error:
            await end(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        reason = ""
        reader: asyncio.Task[None] | None = None
        try:
            welcome = worker_pb2.WorkerWelcome(protocol_version=PROTOCOL_VERSION, heartbeat_s=HEARTBEAT_S)
            await context.write(worker_pb2.AttachResponse(welcome=welcome))

            async def read() -> None:
                async for data in request_iterator:
                    self._hub.heard(link, _parsed_frame(_parse_attach, data), len(data))

            reader = asyncio.create_task(read())
            reader.add_done_callback(lambda _: link.wake.set())
            while not reader.done() and not link.gone:
                await grown(link.trials)
                # Before it is looked: what happens from here on wakes this up again.
                link.wake.clear()
                frame = link.next_frame()
                if frame is not None:
                    await context.write(frame)
                elif not reader.done() and not link.gone:
                    await link.wake.wait()
            if reader.done() and not reader.cancelled() and (error := reader.exception()):
                reason = f"its stream broke: {error}"
            await _end_as_told(reader, context)
        finally:
            await _stop(reader)
            if reason:
                self._hub.lose(link, reason)
            else:
                self._hub.stream_ended(link)


class _Broken(Exception):
    """The other end has sent what may not be sent; its stream ends with `code`."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        super().__init__(details)


async def _first(requests: AsyncIterator[bytes], context: Context) -> bytes:
    """Return a stream's first frame; end it where none comes."""
    data: bytes | None = None
    with contextlib.suppress(TimeoutError):
        data = await asyncio.wait_for(anext(aiter(requests), None), HELLO_S)
    if data is None:
        await end(context, grpc.StatusCode.INVALID_ARGUMENT, "no first frame came")
    return data


def _parsed_frame(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError as error:
        raise _Broken(grpc.StatusCode.INVALID_ARGUMENT, f"not a frame of this stream: {error}") from error


async def _end_as_told(reader: asyncio.Task[None], context: Context) -> None:
    """End the stream whose reader has found something wrong; one that was hung up on has nobody to be told."""
    error = reader.exception() if reader.done() and not reader.cancelled() else None
    if isinstance(error, _Broken):
        await end(context, error.code, str(error))
    if error is not None and not isinstance(error, grpc.aio.BaseError):
        raise error


class PoolService(pool_pb2_grpc.PoolServiceServicer):
    """The pool as a whole."""

    def __init__(self, hub: Hub, *, on_drained: Callable[[], Awaitable[None]]) -> None:
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
        await self._on_drained()
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
            models=hub.models.status(),
        )


async def _stop(task: asyncio.Task[None] | None) -> None:
    """End it; what it raises by now is nobody's affair."""
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
        if task.done() and not task.cancelled():
            task.exception()

"""The client of a pool. It alone meets gRPC's errors; they leave as this package's own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from dspex.v1 import (
    execution_pb2,
    execution_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from dspex_pipelines.bridge.addresses import check_dialled
from dspex_pipelines.bridge.pool_status import PoolStatus, status_from_wire
from dspex_pipelines.bridge.translation import translate
from dspex_pipelines.bridge.window import Window
from dspex_pipelines.errors import DspexError, InvalidValue, PoolFailed, PoolInterrupted, PoolUnreachable
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.limits import MOST_WEIGHT
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome
from dspex_pipelines.model.payload import decode, encode
from dspex_pipelines.model.trial import MetricSpec, ProgramSpec, TrialSpec
from dspex_pipelines.wire.channels import connected
from dspex_pipelines.wire.codec import (
    CHANNEL_OPTIONS,
    FRAME_BYTES,
    PAYLOAD_BYTES,
    PROTOCOL_VERSION,
    metric_to_wire,
    policy_to_wire,
    program_to_wire,
)
from dspex_pipelines.wire.frames import grown

CALL_S = 30.0
CLOSE_S = 2.0
"""How long a client that leaves waits for its sessions to be closed; what is left expires."""
RETRY_S = 0.1
"""A call may notice before the stream does that the bridge is gone."""
_MEANT = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""How a bridge ends a stream on purpose; whatever else ends one is a bridge that is gone."""
_BROKEN = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT})
"""How a bridge that is there fails a call: it would fail the next one too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRef:
    """A version of a session, and the digest of its values as the bridge worked it out."""

    version: int
    digest: bytes


class PoolClient:
    """Sessions and trials of one pool. ``async with`` dials; leaving cancels what is in flight.

    The sessions that it opens are closed with it, and expire when it is killed. A bridge that goes away without a
    word is dialled again for *reconnect_s*, with exponential back-off and full jitter; what was in flight raises
    `PoolInterrupted` at once and is to be sent again, sessions and all. Raises `PoolUnreachable` when nobody
    answers at *address*, or not again, `PoolFailed` when the pool gives up, and `ProtocolMismatch` when another
    version answers.

    Where the pool has less room than its clients want, they take turns, each as many as its *weight* (1 to
    `MOST_WEIGHT`) says.
    """

    def __init__(
        self, address: str, *, weight: int = 1, connect_timeout_s: float = 10.0, reconnect_s: float = 30.0
    ) -> None:
        if not 1 <= weight <= MOST_WEIGHT:
            raise InvalidValue(field="weight", value=weight, fix=f"give an integer in [1, {MOST_WEIGHT:,}]")
        check_dialled(address)
        self.address = address
        self._weight = weight
        self.traceparent = ""
        """W3C trace context that goes with the sessions it opens; empty for none."""
        self._connect_timeout_s = connect_timeout_s
        self._reconnect_s = reconnect_s
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Any] = {}
        """The unary calls by name."""
        self._up = asyncio.Event()
        """Whether there is a stream; also set once there never will be one again."""
        self._opened: set[int] = set()
        """Its own sessions."""
        self._window = Window()
        self.send, self.drop, self.commit = self._window.send, self._window.drop_all, self._window.commit
        self._reader: asyncio.Task[None] | None = None
        self._lost: DspexError | None = None

    async def __aenter__(self) -> PoolClient:
        self._loop = asyncio.get_running_loop()
        stream = await self._dial(self._connect_timeout_s)
        self._reader = asyncio.create_task(self._read(stream))
        return self

    async def _dial(self, within_s: float) -> AsyncIterator[execution_pb2.ExecuteProgramsResponse]:
        """Open channel and stream; raises as the class says, having left nothing open."""
        self._channel = channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        stubs = (session_pb2_grpc.SessionServiceStub(channel), pool_pb2_grpc.PoolServiceStub(channel))
        self._methods = {name: method for stub in stubs for name, method in vars(stub).items()}
        try:
            await connected(channel, within_s=within_s)
            await self._ask(self._methods["GetPool"], pool_pb2.GetPoolRequest(protocol_version=PROTOCOL_VERSION))
            self._window.renew()
            trials = execution_pb2_grpc.ExecutionServiceStub(channel)
            stream = aiter(trials.ExecutePrograms(self._frames(self._window.wake)))
            welcome = await anext(stream)
        except BaseException as error:
            await channel.close(None)
            if isinstance(error, grpc.aio.AioRpcError | TimeoutError | StopAsyncIteration):
                raise self._unreachable(error) from error
            raise
        self._window.open(welcome.credit_limit)
        self._up.set()
        return stream

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up; trials in flight are cancelled by the bridge. Safe to call twice."""
        reader, self._reader = self._reader, None
        if reader is None:
            return
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader
        answers = self._window.is_open
        self._fail(PoolUnreachable(address=self.address, waited_s=0, reason="the client was closed"))
        assert self._channel is not None
        if answers:
            await self._close_sessions()
        self._window.renew()
        await self._channel.close(None)

    async def _close_sessions(self) -> None:
        close = self._methods["CloseSession"]
        requests = [session_pb2.CloseSessionRequest(session_id=session_id) for session_id in self._opened]
        self._opened.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*(self._ask(close, request) for request in requests), return_exceptions=True)

    # ------------------------------------------------------------------ sessions

    async def open_session(
        self, program: ProgramSpec, metrics: Sequence[MetricSpec], space_json: str, calls: CallPolicy | None = None
    ) -> int:
        """Register a program with its metrics, its space and what holds for its calls; return the id of its session.

        Raises `ProgramUnavailable`, `InvalidValue` or `QuotaExceeded`.
        """
        request = session_pb2.OpenSessionRequest(
            program=program_to_wire(program),
            metrics=[metric_to_wire(metric) for metric in metrics],
            space=space_json,
            calls=policy_to_wire(calls or CallPolicy()),
            traceparent=self.traceparent or None,
        )
        response = await self._call("OpenSession", request)
        self._opened.add(response.session_id)
        return response.session_id

    async def set_variables(
        self,
        session_id: int,
        values: Mapping[str, object],
        *,
        expected_version: int | None = None,
        replace: bool = True,
    ) -> SnapshotRef:
        """Make a version of *values*, all or nothing.

        Raises `InvalidValue`, `UnknownSession`, `QuotaExceeded`, or `VersionConflict` when *expected_version* is not
        the newest.
        """
        request = session_pb2.SetVariablesRequest(session_id=session_id, values=encode(values), replace=replace)
        if expected_version is not None:
            request.expected_version = expected_version
        response = await self._call("SetVariables", request)
        return SnapshotRef(version=response.version, digest=response.digest)

    async def make_versions(self, session_id: int, many: Sequence[Mapping[str, object]]) -> list[int]:
        """Make a version of each configuration; return their numbers, 0 for those that `set_variables` would refuse.

        In as many calls as their bytes need. Raises `UnknownSession`, and `QuotaExceeded` for more than 1,024 in one.
        """
        versions: list[int] = []
        request = session_pb2.MakeVersionsRequest(session_id=session_id)
        size = 0
        for payload in map(encode, many):
            size += len(payload)
            if request.values and size > FRAME_BYTES:
                versions += (await self._call("MakeVersions", request)).versions
                request = session_pb2.MakeVersionsRequest(session_id=session_id)
                size = len(payload)
            request.values.append(payload)
        if request.values:
            versions += (await self._call("MakeVersions", request)).versions
        return versions

    async def get_session(self, session_id: int, version: int = 0) -> tuple[SnapshotRef, dict[str, Any]]:
        """Return a version (0: the newest) and its values."""
        request = session_pb2.GetSessionRequest(session_id=session_id, version=version)
        snapshot = (await self._call("GetSession", request)).snapshot
        return SnapshotRef(version=snapshot.version, digest=snapshot.digest), decode(snapshot.values) or {}

    async def close_session(self, session_id: int) -> None:
        """Close a session; its trials in flight are finished."""
        await self._call("CloseSession", session_pb2.CloseSessionRequest(session_id=session_id))
        self._opened.discard(session_id)

    # ------------------------------------------------------------------ the pool

    async def status(self) -> PoolStatus:
        """Return the pool's status."""
        request = pool_pb2.GetPoolRequest(protocol_version=PROTOCOL_VERSION)
        return status_from_wire((await self._call("GetPool", request)).status)

    async def drain(self) -> PoolStatus:
        """Have the pool take no new trials, from anybody, and finish those it has; return its status."""
        return status_from_wire((await self._call("Drain", pool_pb2.DrainRequest())).status)

    # ------------------------------------------------------------------ trials

    async def execute(
        self,
        spec: TrialSpec,
        *,
        session_id: int,
        version: int,
        timeout_s: float,
        outputs: bytes = b"",
        most_attempts: int = 0,
        withdrawn: asyncio.Future[None] | None = None,
    ) -> TrialOutcome:
        """Run *spec* under exactly that snapshot; given *outputs*, only judge those.

        Waits while the window of uncommitted trials is full. A trial that no frame can hold is not sent: its outcome is
        `SERIALIZATION`. Raises `PoolInterrupted` when it has to be sent again, under a snapshot of a new session, and
        `PoolUnreachable` once the bridge is gone. Cancelling the wait cancels the trial. So does *withdrawn* once it is
        done; then the outcome says what became of it, and nobody has to commit it.
        """
        size = len(spec.example.payload) + len(outputs)
        if size > PAYLOAD_BYTES:
            why = (
                f"the example takes {size:,} bytes, and a trial at most {PAYLOAD_BYTES:,}; have it name a file instead"
            )
            return TrialError.unanswered(spec.trial_id, ErrorType.SERIALIZATION, why)
        future: asyncio.Future[TrialOutcome] = self._loop.create_future()
        while True:
            if not self._up.is_set():
                # What it names was held by a bridge that is no more.
                await self._up.wait()
                raise self._lost or PoolInterrupted(address=self.address)
            if self._lost is not None:
                raise self._lost
            number = self.send(spec, session_id, version, timeout_s, outputs, most_attempts, self._settle, future)
            if number:
                break
            if withdrawn is not None and withdrawn.done():
                return TrialError.unanswered(spec.trial_id, ErrorType.CANCELLED, "cancelled before it was sent")
            await self._window.room(withdrawn)
        if withdrawn is not None:
            withdrawn.add_done_callback(lambda _: self._window.cancel(number))
        try:
            outcome = await future
        except asyncio.CancelledError:
            if not future.cancelled():
                # Its answer had come.
                self._window.unwanted(None, future.exception() or future.result())
            self._window.drop(number)
            raise
        if withdrawn is not None and withdrawn.done():
            self.commit(1)
        return outcome

    def _settle(self, future: asyncio.Future[TrialOutcome], outcome: TrialOutcome | Exception) -> None:
        if future.done():
            self._window.unwanted(future, outcome)
        elif isinstance(outcome, Exception):
            future.set_exception(outcome)
            future.exception()
        else:
            future.set_result(outcome)

    async def _frames(self, wake: asyncio.Event) -> AsyncIterator[execution_pb2.ExecuteProgramsRequest]:
        yield execution_pb2.ExecuteProgramsRequest(protocol_version=PROTOCOL_VERSION, weight=self._weight)
        window = self._window
        while wake is window.wake:
            if window.is_quiet:
                wake.clear()
                await wake.wait()
                continue
            await grown(window.outbox)
            yield window.next_frame()

    async def _read(self, stream: AsyncIterator[execution_pb2.ExecuteProgramsResponse]) -> None:
        while True:
            try:
                async for frame in stream:
                    self._window.take(frame)
            except grpc.aio.AioRpcError as error:
                if error.code() in _MEANT:
                    self._fail(self._unreachable(error))
                    return
            else:
                self._fail(PoolUnreachable(address=self.address, waited_s=0, reason="the bridge hung up"))
                return
            self._up.clear()
            self._window.interrupt(PoolInterrupted(address=self.address))
            try:
                stream = await self._dial_again()
            except DspexError as error:
                self._fail(error)
                return

    async def _dial_again(self) -> AsyncIterator[execution_pb2.ExecuteProgramsResponse]:
        loop = self._loop
        deadline = loop.time() + self._reconnect_s
        for attempt in itertools.count():
            assert self._channel is not None
            await self._channel.close(None)
            # Full jitter: all clients of a bridge lose it at the same moment.
            await asyncio.sleep(random.uniform(0.0, min(2.0, 0.05 * 2.0**attempt)))  # noqa: S311
            try:
                return await self._dial(max(0.1, min(2.0, deadline - loop.time())))
            except PoolUnreachable:
                if loop.time() >= deadline:
                    raise PoolUnreachable(
                        address=self.address, waited_s=self._reconnect_s, reason="the bridge went away and stayed away"
                    ) from None
        raise AssertionError("counts for ever")

    def _fail(self, error: DspexError) -> None:
        if self._lost is None:
            self._lost = error
        self._up.set()
        self._window.close(error)

    # ------------------------------------------------------------------ calls

    async def _call(self, method: str, request: Any) -> Any:
        """Call *method* of the sessions' or the pool's service; raises `PoolInterrupted` while the bridge is away."""
        if self._reader is None:
            raise PoolUnreachable(address=self.address, waited_s=0, reason="the client is not open")
        await self._up.wait()
        if self._lost is not None:
            raise self._lost
        try:
            return await self._ask(self._methods[method], request)
        except PoolUnreachable as error:
            if isinstance(error.__cause__, grpc.aio.AioRpcError) and error.__cause__.code() in _BROKEN:
                raise
            await asyncio.sleep(RETRY_S)
            raise self._lost or PoolInterrupted(address=self.address) from error

    async def _ask(self, call: Any, request: Any) -> Any:
        try:
            return await call(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise translate(error, address=self.address, waited_s=CALL_S) from error
        except asyncio.CancelledError as error:
            if asyncio.current_task().cancelling():  # pyright: ignore[reportOptionalMemberAccess] - in a task
                raise
            # The channel was closed under it, to dial again.
            raise PoolUnreachable(address=self.address, waited_s=0, reason="interrupted") from error

    def _unreachable(self, error: Exception) -> DspexError:
        if isinstance(error, grpc.aio.AioRpcError):
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                return translate(error, address=self.address, waited_s=CALL_S)
            if error.code() is grpc.StatusCode.ABORTED:
                return PoolFailed(address=self.address, reason=error.details() or "")
            reason = f"{error.code().name}: {error.details()}"
        else:
            reason = "no answer"
        return PoolUnreachable(address=self.address, waited_s=self._connect_timeout_s, reason=reason)

"""The sessions over gRPC: translates between the wire and the store, and decides nothing."""

from __future__ import annotations

import fnmatch
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import cast

import grpc

from dspex.v1 import session_pb2, session_pb2_grpc, types_pb2
from dspex_pipelines.bridge.hub import Hub
from dspex_pipelines.bridge.refusals import Context, refuse, refuse_for
from dspex_pipelines.bridge.sessions import Snapshot
from dspex_pipelines.errors import DspexError, InvalidValue, QuotaExceeded, UnknownSession
from dspex_pipelines.model.payload import decode
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.trial import reads_as_entry_point
from dspex_pipelines.wire.codec import checked_about, policy_from_wire, session_to_wire

MOST_METRICS = 256
MOST_CONFIGURATIONS = 1_024
"""That versions are made of in one call, which nothing else in the bridge interrupts."""
PROCESS_SLOTS = 8
"""An isolated trial takes so many of a worker's slots: beside a coroutine or a thread, a process costs some 10 ms of
computing and 10 MB. As many at once as there are slots would be late, and their deadlines start when they are sent."""


class SessionService(session_pb2_grpc.SessionServiceServicer):
    """Sessions by name of the wire; only entry points that the allow-list admits are opened."""

    def __init__(self, hub: Hub, allow: Sequence[str]) -> None:
        self._hub = hub
        self._allow = tuple(allow)

    async def OpenSession(  # noqa: N802 - gRPC's name
        self, request: session_pb2.OpenSessionRequest, context: Context
    ) -> session_pb2.OpenSessionResponse:
        """Register a program, its metrics and its space."""
        sessions = self._hub.sessions
        try:
            _check_size("about_bytes", request.ByteSize(), sessions.limits.about_bytes)
            _check_size("metrics", len(request.metrics), MOST_METRICS)
            for entry_point in (request.program.entry_point, *(metric.entry_point for metric in request.metrics)):
                await self._check_admitted(entry_point, context)
            space = ConfigurationSpace.from_json(request.space) if request.space else None
            isolated = request.program.isolation == "process"
            session = sessions.open(
                checked_about(request.program, request.metrics, request.calls, request.traceparent),
                space,
                trial_slots=PROCESS_SLOTS if isolated else 1,
            )
            self._hub.models.declare(session.session_id, policy_from_wire(request.calls).limits)
        except DspexError as error:
            await refuse(context, error)
        return session_pb2.OpenSessionResponse(session_id=session.session_id)

    async def SetVariables(  # noqa: N802
        self, request: session_pb2.SetVariablesRequest, context: Context
    ) -> session_pb2.SetVariablesResponse:
        """Make a new version, all values or none."""
        expected = request.expected_version if request.HasField("expected_version") else None
        try:
            values = self._read(request.values)
            for entry_point in _entry_points(values):
                await self._check_admitted(entry_point, context)
            snapshot = self._hub.sessions.set_variables(
                request.session_id, values, expected_version=expected, replace=request.replace
            )
            self._hub.forget_versions()
        except DspexError as error:
            await refuse(context, error)
        return session_pb2.SetVariablesResponse(version=snapshot.version, digest=snapshot.digest)

    async def MakeVersions(  # noqa: N802
        self, request: session_pb2.MakeVersionsRequest, context: Context
    ) -> session_pb2.MakeVersionsResponse:
        """Make a version of each configuration; one that cannot be costs the others nothing."""
        try:
            session = self._hub.sessions.session(request.session_id)
            _check_size("configurations", len(request.values), MOST_CONFIGURATIONS)
            made = [self._made(request.session_id, values) for values in request.values]
            # Where there is little room, the last ones have let go the first.
            versions = [version if version in session.snapshots else 0 for version in made]
            self._hub.forget_versions()
        except DspexError as error:
            await refuse(context, error)
        return session_pb2.MakeVersionsResponse(versions=versions)

    def _made(self, session_id: int, payload: bytes) -> int:
        try:
            values = self._read(payload)
            if not all(map(self._is_admitted, _entry_points(values))):
                return 0
            return self._hub.sessions.set_variables(session_id, values).version
        except DspexError:
            return 0

    def _read(self, payload: bytes) -> dict[str, object]:
        _check_size("values_bytes", len(payload), self._hub.sessions.limits.values_bytes)
        values = decode(payload) or {}
        if not isinstance(values, dict):
            raise InvalidValue(field="values", value=values, fix="send a msgpack map of names to values")
        return cast("dict[str, object]", values)

    def _is_admitted(self, entry_point: str) -> bool:
        return any(fnmatch.fnmatchcase(entry_point, pattern) for pattern in self._allow)

    async def _check_admitted(self, entry_point: str, context: Context) -> None:
        if not self._is_admitted(entry_point):
            reason = f"this pool runs only {', '.join(self._allow)}; start it with another --allow"
            await refuse_for(context, grpc.StatusCode.PERMISSION_DENIED, entry_point=entry_point, reason=reason)

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
            session=session_to_wire(session.session_id, session.about),
            snapshot=None if snapshot is None else _snapshot_to_wire(snapshot),
        )

    async def WatchSession(  # noqa: N802
        self, request: session_pb2.WatchSessionRequest, context: Context
    ) -> AsyncIterator[session_pb2.WatchSessionResponse]:
        """Stream the newest version now, and each time it has changed; the stream ends with the session."""
        sessions = self._hub.sessions
        told: int | None = None
        try:
            with sessions.watching(request.session_id) as session:
                # Before there is a version: the caller knows that it misses nothing from here on.
                await context.send_initial_metadata(())
                told = 0
                while not session.closed:
                    changed = session.changed
                    if session.newest != told:
                        told = session.newest
                        snapshot = sessions.snapshot(request.session_id)
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


def _snapshot_to_wire(snapshot: Snapshot) -> types_pb2.Snapshot:
    return types_pb2.Snapshot(
        session_id=snapshot.session_id,
        version=snapshot.version,
        values=snapshot.values,
        digest=snapshot.digest,
    )


def _entry_points(values: Mapping[str, object]) -> Iterator[str]:
    """Yield what a worker imports of a configuration, as it does a program."""
    for value in values.values():
        if reads_as_entry_point(value):
            yield value


def _check_size(name: str, size: int, limit: int) -> None:
    """Look before anything is unpacked: small bytes can be large values."""
    if size > limit:
        raise QuotaExceeded(field=name, limit=limit, fix=f"{size:,} are too many; send less")

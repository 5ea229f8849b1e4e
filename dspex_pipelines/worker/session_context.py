"""The worker's cache of sessions and snapshots, as the bridge sent them. Only the program side reads it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dspex.v1 import types_pb2
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.tracing import TraceContext
from dspex_pipelines.model.trial import MetricSpec, ProgramSpec
from dspex_pipelines.wire.codec import (
    configuration_from_wire,
    metric_from_wire,
    policy_from_wire,
    program_from_wire,
)


@dataclass(slots=True, kw_only=True)
class KnownSession:
    """One program, its metrics, and every version of its variables that was sent."""

    program: ProgramSpec
    metrics: tuple[MetricSpec, ...]
    calls: CallPolicy
    trace: TraceContext | None = None
    """What its trials' spans are below; None for none."""
    snapshots: dict[int, Configuration | DspexError] = field(default_factory=dict[int, Configuration | DspexError])


class SessionContext:
    """Snapshots by (session, version): immutable once here, so versions run side by side.

    What cannot be read is kept as the error that it is: it fails its own trials, and nothing else.
    """

    def __init__(self) -> None:
        self._sessions: dict[int, KnownSession | DspexError] = {}

    def open(self, session: types_pb2.Session) -> None:
        """Take in a session; one that is known already stays as it is."""
        try:
            known: KnownSession | DspexError = KnownSession(
                program=program_from_wire(session.program),
                metrics=tuple(metric_from_wire(metric) for metric in session.metrics),
                calls=policy_from_wire(session.calls),
                trace=TraceContext.from_traceparent(session.traceparent),
            )
        except DspexError as error:
            known = error
        self._sessions.setdefault(session.session_id, known)

    def add(self, snapshot: types_pb2.Snapshot) -> None:
        """Take in a snapshot of an open session."""
        try:
            configuration: Configuration | DspexError = configuration_from_wire(snapshot.values)
        except DspexError as error:
            configuration = error
        self.put(snapshot.session_id, snapshot.version, configuration)

    def put(self, session_id: int, version: int, configuration: Configuration | DspexError) -> None:
        """Keep *configuration* as that version of an open session; a version never changes."""
        session = self._sessions.get(session_id)
        if isinstance(session, KnownSession):
            session.snapshots.setdefault(version, configuration)

    def forget(self, session_id: int, version: int) -> None:
        """Forget one version; trials that run keep what they were given."""
        session = self._sessions.get(session_id)
        if isinstance(session, KnownSession):
            session.snapshots.pop(version, None)

    def close(self, session_id: int) -> None:
        """Forget a session; trials that run keep what they were given."""
        self._sessions.pop(session_id, None)

    def find(self, session_id: int, version: int) -> tuple[KnownSession, Configuration] | None:
        """Return what exactly that snapshot says, or None when it was never sent; raises why it cannot be read."""
        session = self._sessions.get(session_id)
        if type(session) is KnownSession:
            configuration = session.snapshots.get(version)
            if type(configuration) is Configuration:
                return session, configuration
            unread = configuration
        else:
            unread = session
        if isinstance(unread, DspexError):
            raise unread.with_traceback(None)
        return None

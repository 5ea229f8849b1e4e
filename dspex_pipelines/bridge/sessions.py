"""Sessions: each a program's variable values, versioned. A snapshot never changes once made."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dspex_pipelines.errors import InvalidValue, UnknownSession, VersionConflict
from dspex_pipelines.model.payload import encode
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import MetricSpec, ProgramSpec

UNREFERENCED = 4_096
"""Snapshots that no trial refers to and that a session keeps all the same, the newest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One immutable version of a session's values."""

    session_id: int
    version: int
    values: bytes
    """msgpack map, as it goes to the workers."""
    digest: bytes
    configuration: Configuration


@dataclass(slots=True, kw_only=True)
class Session:
    """One program's values and all their versions that are alive."""

    session_id: int
    program: ProgramSpec
    metrics: tuple[MetricSpec, ...]
    space: ConfigurationSpace | None
    newest: int = 0
    """The version set last; an older one again when its values were."""
    made: int = 0
    """How many versions there ever were."""
    snapshots: OrderedDict[int, Snapshot] = field(default_factory=OrderedDict[int, Snapshot])
    by_digest: dict[bytes, int] = field(default_factory=dict[bytes, int])
    pins: dict[int, int] = field(default_factory=dict[int, int])
    closed: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, at every new version and at the close."""


class SessionStore:
    """Multi-version sessions: atomic batch set, compare-and-set, pins that keep a version alive."""

    def __init__(self, *, unreferenced: int = UNREFERENCED) -> None:
        self._unreferenced = unreferenced
        self._sessions: dict[int, Session] = {}

    def __len__(self) -> int:
        return sum(not session.closed for session in self._sessions.values())

    def open(self, program: ProgramSpec, metrics: Sequence[MetricSpec], space: ConfigurationSpace | None) -> Session:
        """Make a session without any version yet. Values are checked against *space* where there is one."""
        session_id = secrets.randbits(63) | 1
        session = Session(session_id=session_id, program=program, metrics=tuple(metrics), space=space)
        self._sessions[session_id] = session
        return session

    def session(self, session_id: int) -> Session:
        """Return an open session; raises `UnknownSession`."""
        session = self._sessions.get(session_id)
        if session is None or session.closed:
            raise UnknownSession(session_id=str(session_id))
        return session

    def set_variables(
        self,
        session_id: int,
        values: Mapping[str, object],
        *,
        expected_version: int | None = None,
        replace: bool = True,
    ) -> Snapshot:
        """Return the snapshot of *values*: all of them in one version, or an error and no version.

        Without *replace*, names left out keep their value of the newest version. Values that a live
        version has already are that version, which becomes the newest. Raises `UnknownSession`,
        `VersionConflict`, `InvalidValue`.
        """
        session = self.session(session_id)
        if expected_version is not None and expected_version != session.newest:
            raise VersionConflict(session_id=str(session_id), expected=expected_version, actual=session.newest)
        if not replace and session.newest in session.snapshots:
            values = {**session.snapshots[session.newest].configuration.values, **values}
        if session.space is not None:
            configuration = session.space.validate(values)
        else:
            for name, value in values.items():
                if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - the wire's maps may
                    raise InvalidValue(field="values", value=name, fix="name variables by strings")
                if not isinstance(value, bool | int | float | str):
                    raise InvalidValue(field=name, value=value, fix="give a number, a boolean or a string")
            configuration = Configuration(values)  # type: ignore[arg-type]  # checked just above
        known = session.by_digest.get(configuration.digest)
        # With compare-and-set a caller counts versions, so it gets a new one.
        if known is not None and expected_version is None:
            session.snapshots.move_to_end(known)
            if known != session.newest:
                session.newest = known
                _announce(session)
            return session.snapshots[known]
        session.made += 1
        session.newest = session.made
        snapshot = Snapshot(
            session_id=session_id,
            version=session.newest,
            values=encode(configuration.values),
            digest=configuration.digest,
            configuration=configuration,
        )
        session.snapshots[snapshot.version] = snapshot
        session.by_digest[snapshot.digest] = snapshot.version
        self._evict(session)
        _announce(session)
        return snapshot

    def snapshot(self, session_id: int, version: int = 0) -> Snapshot:
        """Return a live version, the newest for 0; raises `UnknownSession`."""
        session = self.session(session_id)
        found = session.snapshots.get(version or session.newest)
        if found is None:
            raise UnknownSession(session_id=str(session_id), version=version or session.newest)
        return found

    def pin(self, session_id: int, version: int) -> None:
        """Keep a version alive for one more trial; raises `UnknownSession` when it is gone."""
        session = self._sessions.get(session_id)
        if session is None or session.closed or version not in session.snapshots:
            raise UnknownSession(session_id=str(session_id), version=version)
        session.pins[version] = session.pins.get(version, 0) + 1

    def unpin(self, session_id: int, version: int) -> bool:
        """One trial less refers to the version; return whether it was the last of a closed session."""
        session = self._sessions.get(session_id)
        if session is None:
            return False
        left = session.pins.get(version, 0) - 1
        if left > 0:
            session.pins[version] = left
            return False
        session.pins.pop(version, None)
        if session.closed:
            return self._forget_if_done(session)
        if len(session.snapshots) > self._unreferenced:
            self._evict(session)
        return False

    def pinned(self, session_id: int, version: int) -> tuple[Session, Snapshot]:
        """Return what a pinned version says, in a closed session too."""
        session = self._sessions[session_id]
        return session, session.snapshots[version]

    def close(self, session_id: int) -> bool:
        """Close a session; return whether it is gone, or stays until the trials that refer to it are settled."""
        session = self.session(session_id)
        session.closed = True
        _announce(session)
        return self._forget_if_done(session)

    def close_all(self) -> None:
        """Close every session, so that whoever watches one hears of its end."""
        for session_id in [session_id for session_id, session in self._sessions.items() if not session.closed]:
            self.close(session_id)

    def _forget_if_done(self, session: Session) -> bool:
        if session.pins:
            return False
        self._sessions.pop(session.session_id, None)
        return True

    def _evict(self, session: Session) -> None:
        over = len(session.snapshots) - len(session.pins) - self._unreferenced
        if over <= 0:
            return
        for version in [v for v in session.snapshots if v not in session.pins and v != session.newest][:over]:
            gone = session.snapshots.pop(version)
            if session.by_digest.get(gone.digest) == version:
                del session.by_digest[gone.digest]


def _announce(session: Session) -> None:
    changed, session.changed = session.changed, asyncio.Event()
    changed.set()

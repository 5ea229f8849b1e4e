"""Sessions: each a program's variable values, versioned. A snapshot never changes once made."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

from dspex_pipelines.errors import InvalidValue, QuotaExceeded, UnknownSession, VersionConflict
from dspex_pipelines.model.payload import encode
from dspex_pipelines.model.space import Configuration, ConfigurationSpace

_SNAPSHOT_BYTES = 512
_VALUE_BYTES = 128
"""About what Python's objects take beside the bytes of a snapshot, and of each of its values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """How long a session lives and how much there may be of what."""

    ttl_s: float = 3_600.0
    """A session that nobody has set, read, watched or run a trial of for so long is closed."""
    sessions: int = 4_096
    about_bytes: int = 1 << 20
    """Of a session's program, metrics and space."""
    variables: int = 1_024
    """In a session's space, and in a configuration where there is no space; as many constraints."""
    values_bytes: int = 1 << 20
    """Of one configuration's values."""
    snapshots: int = 32_768
    """Alive in one session."""
    unreferenced: int = 4_096
    """Snapshots that no trial refers to and that a session keeps all the same, the newest ones."""
    session_bytes: int = 64 << 20
    """Of all that is alive in one session."""
    total_bytes: int = 256 << 20
    """Of all sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One immutable version of a session's values."""

    session_id: int
    version: int
    values: bytes
    """msgpack map, as it goes to the workers."""
    digest: bytes
    configuration: Configuration

    @property
    def size(self) -> int:
        """About the bytes it takes here."""
        return _SNAPSHOT_BYTES + _VALUE_BYTES * len(self.configuration.values) + len(self.values)


@dataclass(slots=True, kw_only=True)
class Session:
    """One program's values and all their versions that are alive."""

    session_id: int
    about: bytes
    """Its program and metrics, as they go to the workers."""
    space: ConfigurationSpace | None
    trial_slots: int = 1
    """How many of a worker's slots a trial of it takes."""
    newest: int = 0
    """The version set last; an older one again when its values were."""
    made: int = 0
    """How many versions there ever were."""
    snapshots: OrderedDict[int, Snapshot] = field(default_factory=OrderedDict[int, Snapshot])
    by_digest: dict[bytes, int] = field(default_factory=dict[bytes, int])
    pins: dict[int, int] = field(default_factory=dict[int, int])
    watchers: int = 0
    closed: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, at every new version and at the close."""
    size: int = 0
    """About the bytes it takes here."""
    used: bool = True
    """Whether anybody has used it since time last passed."""
    idle_since: float = 0.0
    """When time last passed while it was used."""


class SessionStore:
    """Multi-version sessions: atomic batch set, compare-and-set, pins that keep a version alive, time to live, quota.

    It reads no clock: `expire` is told the time.
    """

    def __init__(self, limits: SessionLimits | None = None) -> None:
        self.limits = limits or SessionLimits()
        self._sessions: dict[int, Session] = {}
        self._size = 0
        self.gone: list[tuple[int, int]] = []
        """Versions of open sessions, by session, that are no more: for whoever hands snapshots on, who empties it."""

    def __len__(self) -> int:
        return sum(not session.closed for session in self._sessions.values())

    def open(self, about: bytes, space: ConfigurationSpace | None, *, trial_slots: int = 1) -> Session:
        """Make a session without any version yet. Values are checked against *space* where there is one.

        *trial_slots* is how many of a worker's slots a trial of it takes. Raises `QuotaExceeded`.
        """
        limits = self.limits
        if len(self._sessions) >= limits.sessions:
            raise QuotaExceeded(
                field="sessions",
                limit=limits.sessions,
                fix=f"close those that are done with; one that nobody uses for {limits.ttl_s:g} s closes by itself",
            )
        if space is not None:
            _check_count("space.variables", len(space.variables), limits.variables)
            _check_count("space.constraints", len(space.constraints), limits.variables)
        size = _SNAPSHOT_BYTES + len(about) + (_VALUE_BYTES * len(space.variables) if space else 0)
        if self._size + size > limits.total_bytes:
            raise QuotaExceeded(field="total_bytes", limit=limits.total_bytes, fix="close sessions that are done with")
        session_id = secrets.randbits(63) | 1
        session = Session(session_id=session_id, about=about, space=space, trial_slots=trial_slots, size=size)
        self._sessions[session_id] = session
        self._size += size
        return session

    def session(self, session_id: int) -> Session:
        """Return an open session, which counts as using it; raises `UnknownSession`."""
        session = self._sessions.get(session_id)
        if session is None or session.closed:
            raise UnknownSession(session_id=str(session_id))
        session.used = True
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
        `VersionConflict`, `InvalidValue`, `QuotaExceeded`.
        """
        session = self.session(session_id)
        if expected_version is not None and expected_version != session.newest:
            raise VersionConflict(session_id=str(session_id), expected=expected_version, actual=session.newest)
        if not replace and session.newest in session.snapshots:
            values = {**session.snapshots[session.newest].configuration.values, **values}
        configuration = self._checked(session, values)
        known = session.by_digest.get(configuration.digest)
        # With compare-and-set a caller counts versions, so it gets a new one.
        if known is not None and expected_version is None:
            session.snapshots.move_to_end(known)
            if known != session.newest:
                session.newest = known
                _announce(session)
            return session.snapshots[known]
        snapshot = Snapshot(
            session_id=session_id,
            version=session.made + 1,
            values=encode(configuration.values),
            digest=configuration.digest,
            configuration=configuration,
        )
        self._make_room(session, snapshot)
        session.made = session.newest = snapshot.version
        session.snapshots[snapshot.version] = snapshot
        session.by_digest[snapshot.digest] = snapshot.version
        self._grow(session, snapshot.size)
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

    @contextmanager
    def watching(self, session_id: int) -> Generator[Session]:
        """Give a session that does not grow old meanwhile; raises `UnknownSession`."""
        session = self.session(session_id)
        session.watchers += 1
        try:
            yield session
        finally:
            session.watchers -= 1
            session.used = True

    def pin(self, session_id: int, version: int, trials: int = 1) -> Session:
        """Keep a version alive for so many more trials; raises `UnknownSession` when it is gone."""
        session = self._sessions.get(session_id)
        if session is None or session.closed or version not in session.snapshots:
            raise UnknownSession(session_id=str(session_id), version=version)
        session.pins[version] = session.pins.get(version, 0) + trials
        return session

    def unpin(self, session_id: int, version: int, trials: int = 1) -> bool:
        """So many trials less refer to the version; return whether they were the last of a closed session."""
        session = self._sessions.get(session_id)
        if session is None:
            return False
        left = session.pins.get(version, 0) - trials
        if left > 0:
            session.pins[version] = left
            return False
        session.pins.pop(version, None)
        session.used = True
        if session.closed:
            return self._forget_if_done(session)
        if len(session.snapshots) > self.limits.unreferenced:
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

    def expire(self, now: float) -> list[int]:
        """Close the sessions that were not used for `ttl_s`; return which. To be called every now and then.

        A use is dated by the first call after it, so that none costs a look at the clock. A session that trials refer
        to, or that is watched, is in use.
        """
        expired: list[int] = []
        for session in self._sessions.values():
            if session.used or session.pins or session.watchers:
                session.used = False
                session.idle_since = now
            elif now - session.idle_since >= self.limits.ttl_s:
                expired.append(session.session_id)
        for session_id in expired:
            self.close(session_id)
        return expired

    def _checked(self, session: Session, values: Mapping[str, object]) -> Configuration:
        if session.space is not None:
            return session.space.validate(values)
        _check_count("values", len(values), self.limits.variables)
        for name, value in values.items():
            if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - the wire's maps may
                raise InvalidValue(field="values", value=name, fix="name variables by strings")
            if not isinstance(value, bool | int | float | str):
                raise InvalidValue(field=name, value=value, fix="give a number, a boolean or a string")
        return Configuration(values)  # type: ignore[arg-type]  # checked just above

    def _make_room(self, session: Session, snapshot: Snapshot) -> None:
        """Let go as many unreferenced versions as the new one needs; raises `QuotaExceeded`, having let go none."""
        limits = self.limits
        _check_count("values_bytes", len(snapshot.values), limits.values_bytes)
        over = {
            "snapshots": len(session.snapshots) + 1 - limits.snapshots,
            "session_bytes": session.size + snapshot.size - limits.session_bytes,
            "total_bytes": self._size + snapshot.size - limits.total_bytes,
        }
        going: list[int] = []
        for version, old in session.snapshots.items():
            if all(excess <= 0 for excess in over.values()):
                break
            if version not in session.pins:
                going.append(version)
                over["snapshots"] -= 1
                over["session_bytes"] -= old.size
                over["total_bytes"] -= old.size
        for name, excess in over.items():
            if excess > 0:
                fix = "wait for trials that refer to its versions" if name != "total_bytes" else "close other sessions"
                raise QuotaExceeded(field=name, limit=getattr(limits, name), fix=fix)
        self._let_go(session, going)

    def _forget_if_done(self, session: Session) -> bool:
        if session.pins:
            return False
        if self._sessions.pop(session.session_id, None) is not None:
            self._size -= session.size
        return True

    def _evict(self, session: Session) -> None:
        over = len(session.snapshots) - len(session.pins) - self.limits.unreferenced
        if over > 0:
            # For each new version, once there are so many: it looks at those that go, and at the pinned ones before.
            spare = (v for v in session.snapshots if v not in session.pins and v != session.newest)
            self._let_go(session, list(islice(spare, over)))

    def _let_go(self, session: Session, versions: list[int]) -> None:
        for version in versions:
            gone = session.snapshots.pop(version)
            self.gone.append((session.session_id, version))
            if session.by_digest.get(gone.digest) == version:
                del session.by_digest[gone.digest]
            self._grow(session, -gone.size)

    def _grow(self, session: Session, size: int) -> None:
        session.size += size
        self._size += size


def _announce(session: Session) -> None:
    changed, session.changed = session.changed, asyncio.Event()
    changed.set()


def _check_count(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise QuotaExceeded(field=name, limit=limit, fix=f"{count:,} are too many; send less")

"""Runs one trial: context info, apply configuration, execute, worker side, parse. Nothing escapes it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from dspex_pipelines.errors import (
    InvalidValue,
    PoolInterrupted,
    PoolUnreachable,
    ProgramUnavailable,
    QuotaExceeded,
    UnknownSession,
)
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.trial import MetricSpec, ProgramSpec, TrialSpec

_STALE_TRIES = 6
_STALE_WAIT_S = 0.01
"""At most, before the third try; twice as long before each later one. Where there is no room for the versions of all
that is in flight, trials that come back at once have those of the others let go."""
_APPLIED_AT_ONCE = 64
"""Configurations in one call: it costs as much as applying so many, and the first of them wait for the last."""
Key = TypeVar("Key")
About = TypeVar("About")
Item = TypeVar("Item")
_Begun: TypeAlias = tuple[Any, TrialSpec, int, int, Callable[[Any, TrialOutcome], None], Callable[[Any], None]]
"""An item, its trial, the session and version that it was sent under, and who is told."""

_Parked: TypeAlias = tuple[TrialSpec, bytes, Any, Callable[[Any, TrialOutcome], None], Callable[[Any], None]]
"""What `TrialRunner.begin` was given."""


class SnapshotLike(Protocol):
    """A version of a session."""

    @property
    def version(self) -> int:
        """The version's number."""
        ...


class TrialPool(Protocol):
    """What a runner asks of a pool; `bridge.client.PoolClient` is one."""

    async def open_session(
        self, program: ProgramSpec, metrics: Sequence[MetricSpec], space_json: str, calls: CallPolicy
    ) -> int:
        """Register a program; return the session that holds its configurations."""
        ...

    async def set_variables(self, session_id: int, values: Mapping[str, object]) -> SnapshotLike:
        """Make a snapshot of *values*, all or nothing."""
        ...

    async def make_versions(self, session_id: int, many: Sequence[Mapping[str, object]]) -> Sequence[int]:
        """Make a snapshot of each; return their versions, 0 for those that `set_variables` would refuse."""
        ...

    async def execute(
        self,
        spec: TrialSpec,
        *,
        session_id: int,
        version: int,
        timeout_s: float,
        outputs: bytes = b"",
        most_attempts: int = 0,
    ) -> TrialOutcome:
        """Run a trial under exactly that snapshot; given *outputs*, only judge those."""
        ...

    def send(
        self,
        spec: TrialSpec,
        session_id: int,
        version: int,
        timeout_s: float,
        outputs: bytes,
        most_attempts: int,
        answered: Callable[[About, TrialOutcome | Exception], None],
        about: About,
    ) -> int:
        """Do what `execute` does, where nothing has to be waited for first; return 0, having done nothing, elsewhere.

        *answered* is called once, with *about* and the outcome, or what `execute` would raise.
        """
        ...

    def drop(self, answered: Callable[[Any, TrialOutcome | Exception], None]) -> None:
        """Cancel the trials of whose outcomes *answered* would be told."""
        ...


class DurablePool(TrialPool, Protocol):
    """A pool that bounds what is sent and not yet made durable."""

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
        """Run a trial as a `TrialPool` does; once *withdrawn* is done, it is cancelled, and its outcome says so."""
        ...

    def commit(self, count: int) -> None:
        """*count* outcomes are durable: so much credit comes back."""
        ...


class TrialRunner:
    """Turns a `TrialSpec` into its outcome over a pool.

    It remembers which session a program has and which version a configuration has, so applying what is
    applied already costs nothing. *timeout_s* is the run limit of a trial, 0 for none; *most_attempts* bounds its
    attempts, 0 leaves them to the type of error.
    """

    def __init__(
        self,
        pool: TrialPool,
        *,
        metrics: Sequence[MetricSpec],
        space_json: str,
        timeout_s: float,
        most_attempts: int = 0,
        calls: CallPolicy | None = None,
    ) -> None:
        self._pool = pool
        self._calls = calls or CallPolicy()
        self._metrics = tuple(metrics)
        self._space_json = space_json
        self._timeout_s = timeout_s
        self._most_attempts = most_attempts
        self._sessions: _Remembered[bytes] = _Remembered()
        self._versions: _Remembered[tuple[int, bytes]] = _Remembered()
        self._parked: dict[tuple[bytes, bytes], list[_Parked]] = {}
        """What is begun once its configuration is applied, by the digests of program and configuration."""
        self._unapplied: dict[bytes, list[TrialSpec]] = {}
        """A trial of each configuration that is to be applied, by the digest of its program."""
        self._applying: set[asyncio.Task[None]] = set()
        self.pool_lost: PoolUnreachable | None = None
        """Set once the bridge is gone: outcomes since then say nothing about their trials."""

    async def run(self, spec: TrialSpec, outputs: bytes = b"") -> TrialOutcome:
        """Return the trial's outcome, whatever happens; given *outputs* of an earlier run, these are judged anew."""
        stale = 0
        while True:
            session_id = version = 0
            try:
                session_id = await self._context(spec.program)
                version = await self._apply(session_id, spec)
                outcome = await self._pool.execute(
                    spec,
                    session_id=session_id,
                    version=version,
                    timeout_s=self._timeout_s,
                    outputs=outputs,
                    most_attempts=self._most_attempts,
                )
            except Exception as error:  # noqa: BLE001 - the promise above
                outcome = error
            if not self._is_outdated(spec, session_id, version, outcome):
                return self._as_outcome(spec, outcome)
            # As often as it takes, where the bridge has gone: it is the pool that gives up.
            if not isinstance(outcome, PoolInterrupted):
                stale += 1
                if stale == _STALE_TRIES:
                    return self._as_outcome(spec, outcome)
                if stale > 1:
                    await asyncio.sleep(random.uniform(0.0, _STALE_WAIT_S * 2.0 ** (stale - 2)))  # noqa: S311

    def begin(
        self,
        spec: TrialSpec,
        outputs: bytes,
        item: Item,
        ended: Callable[[Item, TrialOutcome], None],
        again: Callable[[Item], None],
    ) -> bool:
        """Begin what `run` does, where there is room once all is applied; return False, having done nothing, elsewhere.

        *ended* is called with *item* and the outcome, or *again* with *item* when it is to be `run` after all.
        """
        session_id = self._sessions.answers.get(spec.program.digest, 0)
        version = self._versions.answers.get((session_id, spec.configuration.digest))
        if version is None:
            self._park((spec, outputs, item, ended, again))
            return True
        about = (item, spec, session_id, version, ended, again)
        sent = self._pool.send(
            spec, session_id, version, self._timeout_s, outputs, self._most_attempts, self._answered, about
        )
        return sent > 0

    def drop(self) -> None:
        """Cancel what was begun."""
        self._parked.clear()
        for specs in self._unapplied.values():
            specs.clear()
        self._pool.drop(self._answered)

    def _park(self, parked: _Parked) -> None:
        spec = parked[0]
        program = spec.program.digest
        key = (program, spec.configuration.digest)
        if key not in self._parked:
            self._parked[key] = []
            unapplied = self._unapplied.get(program)
            if unapplied is None:
                unapplied = self._unapplied[program] = []
                task = asyncio.create_task(self._unpark(spec.program, unapplied))
                self._applying.add(task)
                task.add_done_callback(self._applying.discard)
            unapplied.append(spec)
        self._parked[key].append(parked)

    async def _unpark(self, program: ProgramSpec, unapplied: list[TrialSpec]) -> None:
        """Apply configurations, as many at a time as have come since the last call, and begin what waits for them."""
        try:
            while specs := unapplied[:_APPLIED_AT_ONCE]:
                del unapplied[:_APPLIED_AT_ONCE]
                await self._apply_all(program, specs)
        finally:
            del self._unapplied[program.digest]

    async def _apply_all(self, program: ProgramSpec, specs: list[TrialSpec]) -> None:
        """Apply the trials' configurations and begin what waits for that; to run what cannot be begun says why."""
        applied: set[bytes] = set()
        try:
            with contextlib.suppress(Exception):
                session_id = await self._context(program)
                versions = await self._pool.make_versions(session_id, [spec.configuration.values for spec in specs])
                for spec, version in zip(specs, versions, strict=True):
                    if version:
                        self._versions.answers[session_id, spec.configuration.digest] = version
                        applied.add(spec.configuration.digest)
        finally:
            for spec in specs:
                configuration = spec.configuration.digest
                for parked in self._parked.pop((program.digest, configuration), ()):
                    *_, item, _, again = parked
                    begun = False
                    with contextlib.suppress(Exception):
                        begun = configuration in applied and self.begin(*parked)
                    if not begun:
                        again(item)

    def _answered(self, about: _Begun, outcome: TrialOutcome | Exception) -> None:
        item, spec, session_id, version, ended, again = about
        if type(outcome) is TrialResult and outcome.configuration_digest == spec.configuration.digest:
            # As almost always.
            ended(item, outcome)
        elif self._is_outdated(spec, session_id, version, outcome):
            again(item)
        else:
            ended(item, self._as_outcome(spec, outcome))

    def _is_outdated(self, spec: TrialSpec, session_id: int, version: int, outcome: TrialOutcome | Exception) -> bool:
        """Return whether what the trial was sent under is no more; it is forgotten then."""
        if isinstance(outcome, PoolInterrupted | UnknownSession):
            self._sessions.forget(spec.program.digest, session_id)
            return True
        if isinstance(outcome, TrialError) and outcome.type is ErrorType.STALE_STATE:
            # The bridge let the snapshot go, or was another one: apply again.
            self._versions.forget((session_id, spec.configuration.digest), version)
            return True
        return False

    def _as_outcome(self, spec: TrialSpec, outcome: TrialOutcome | Exception) -> TrialOutcome:
        return self._fault(spec, outcome) if isinstance(outcome, Exception) else _verified(spec, outcome)

    def _fault(self, spec: TrialSpec, error: Exception) -> TrialError:
        kind, message, retryable = ErrorType.WORKER_LOST, str(error), True
        match error:
            case InvalidValue():
                kind, retryable = ErrorType.INVALID_CONFIGURATION, False
            case ProgramUnavailable():
                kind, retryable = ErrorType.PROGRAM_UNAVAILABLE, False
            case QuotaExceeded() | UnknownSession():
                # A later run may find room.
                kind = ErrorType.STALE_STATE
            case PoolUnreachable():
                self.pool_lost = error
            case _:
                message = f"{type(error).__name__}: {error}"
        return TrialError.unanswered(spec.trial_id, kind, message, retryable=retryable)

    async def _context(self, program: ProgramSpec) -> int:
        return self._sessions.answers.get(program.digest) or await self._sessions.get(
            program.digest,
            lambda: self._pool.open_session(program, self._metrics, self._space_json, self._calls),
        )

    async def _apply(self, session_id: int, spec: TrialSpec) -> int:
        async def apply() -> int:
            snapshot = await self._pool.set_variables(session_id, spec.configuration.values)
            return snapshot.version

        key = (session_id, spec.configuration.digest)
        return self._versions.answers.get(key) or await self._versions.get(key, apply)


class _Remembered(Generic[Key]):
    """Answers worked out once, however many ask at the same time; a failed one is asked again."""

    def __init__(self) -> None:
        self.answers: dict[Key, int] = {}
        self._asked: dict[Key, asyncio.Task[int]] = {}

    async def get(self, key: Key, ask: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """Return the answer, asking for it if nobody has."""
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.create_task(ask())
            task.add_done_callback(lambda done: self._answered(key, done))
        # Shielded: one caller's cancellation is not the others'.
        return await asyncio.shield(task)

    def forget(self, key: Key, answer: int) -> None:
        """Ask anew next time, unless somebody has since *answer*."""
        if self.answers.get(key) == answer:
            del self.answers[key]

    def _answered(self, key: Key, task: asyncio.Task[int]) -> None:
        del self._asked[key]
        if not task.cancelled() and task.exception() is None:
            self.answers[key] = task.result()


def _verified(spec: TrialSpec, outcome: TrialOutcome) -> TrialOutcome:
    """Refuse an answer that was worked out under another configuration than the trial's."""
    seen = outcome.configuration_digest
    if seen == spec.configuration.digest:
        return outcome
    if isinstance(outcome, TrialError) and not seen:
        return outcome
    return TrialError(
        trial_id=spec.trial_id,
        configuration_digest=seen,
        type=ErrorType.STALE_STATE,
        message=(
            f"the worker ran under configuration {seen.hex()[:12]}, "
            f"the trial's is {spec.configuration.digest.hex()[:12]}"
        ),
        retryable=True,
        session_version=outcome.session_version,
        attempts=outcome.attempts,
        worker=outcome.worker,
        outputs_payload=outcome.outputs_payload if isinstance(outcome, TrialResult) else b"",
    )

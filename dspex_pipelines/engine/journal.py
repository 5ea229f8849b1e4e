"""The append-only durable record of outcomes, through which they reach collection.

SQLite in WAL mode by default, PostgreSQL by URL; several processes write at once, in short transactions. Executions are
unique by (trial, generation), and the first final outcome of one wins. The scores made when a program ran are kept with
its outcome; those of other labels or metrics, made later from the same outputs, beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NamedTuple, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dspex_pipelines.engine.journal_schema import executions, generations, open_database, scores
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.outcome import Attempt, ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import decode, encode

PAGE = 500
_OK = 0
# Numbers are in databases: append to the enum, never reorder it.
_STATUS = {kind: number for number, kind in enumerate(ErrorType, start=1)}
_ERROR_TYPE = {number: kind for kind, number in _STATUS.items()}
_STORED = tuple(column.name for column in executions.columns if column.name != "id")
_SCORED = tuple(column.name for column in scores.columns if column.name != "id")
_RECORDED_AT = _STORED.index("recorded_at")


class Entry(NamedTuple):
    """An outcome to be recorded. *scoring* is a digest of the labels and metric versions that it was judged by."""

    scoring: bytes
    outcome: TrialOutcome
    rescored: bool = False
    """Whether only the scores are new: the program's outputs were recorded before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An execution as it is recorded; `scored` says whether the scores are those that were asked for."""

    outcome: TrialOutcome
    scored: bool
    recorded_at: float
    """Seconds since the epoch."""


class Journal:
    """Outcomes at a database URL, or in an SQLite file. Used by one thread at a time; by many processes at once.

    Entering raises `DspexError` when the database cannot be opened or was written by a later release.
    """

    def __init__(self, url: str) -> None:
        self.url = sa.make_url(url if "://" in url else f"sqlite:///{url}")
        self._engine: sa.Engine | None = None
        self._generations: dict[str, int] = {"": 0}

    def __enter__(self) -> Journal:
        self._engine = open_database(self.url)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; safe to call twice."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @property
    def engine(self) -> sa.Engine:
        """The open database; raises `DspexError` where it is not."""
        if self._engine is None:
            raise DspexError("the journal is not open; use it as a context manager")
        return self._engine

    def record(self, generation: str, entries: Sequence[Entry], *, failures_since: float = 0.0) -> None:
        """Make *entries* durable in one transaction.

        The first final outcome of an execution stays; one that is to be run again gives way to a later one, and so
        does a failure from before *failures_since* (seconds since the epoch).
        """
        if not entries:
            return
        now = time.time()
        with self.engine.begin() as connection:
            number = self._generation(connection, generation)
            ran = [(*_row(entry, number, now), failures_since) for entry in entries if not entry.rescored]
            judged = [_scores_row(entry, number, now) for entry in entries if entry.rescored]
            if ran:
                _execute(connection, _INSERT[connection.dialect.name], (*_STORED, "failures_since"), ran)
            if judged:
                _execute(connection, _INSERT_SCORES[connection.dialect.name], _SCORED, judged)

    def find(self, generation: str, wanted: Mapping[bytes, bytes]) -> dict[bytes, Found]:
        """Return what is recorded of the trials in *wanted*, trial id to scoring."""
        found: dict[bytes, Found] = {}
        trial_ids = list(wanted)
        with self.engine.connect() as connection:
            number = self._generation(connection, generation)
            for start in range(0, len(trial_ids), PAGE):
                page = trial_ids[start : start + PAGE]
                unlike: list[bytes] = []
                for row in _rows(connection, _FIND, number, page):
                    trial_id, _, scoring, status, *_ = row
                    scored = scoring == wanted[trial_id] or not _is_judged(status)
                    if not scored:
                        unlike.append(trial_id)
                    found[trial_id] = Found(outcome=_outcome(row), scored=scored, recorded_at=row[_RECORDED_AT])
                if not unlike:
                    continue
                for row in _rows(connection, _FIND_SCORES, number, unlike):
                    trial_id, _, scoring, _, recorded_at, *_ = row
                    if scoring == wanted[trial_id]:
                        outcome = _judged_again(found[trial_id].outcome, row)
                        found[trial_id] = Found(outcome=outcome, scored=True, recorded_at=recorded_at)
        return found

    def count(self) -> int:
        """Return how many executions are recorded."""
        with self.engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(executions)).scalar_one()

    def _generation(self, connection: sa.Connection, name: str) -> int:
        number = self._generations.get(name)
        if number is None:
            insert = _DIALECT[connection.dialect.name].insert(generations)
            connection.execute(insert.values(name=name).on_conflict_do_nothing())
            find = sa.select(generations.c.id).where(generations.c.name == name)
            number = self._generations[name] = connection.execute(find).scalar_one()
        return number


_DIALECT: dict[str, Any] = {"sqlite": sqlite, "postgresql": postgresql}


def _insert_executions(dialect: Any) -> str:
    insert = dialect.insert(executions)
    statement = insert.on_conflict_do_update(
        index_elements=["trial_id", "generation"],
        set_={name: insert.excluded[name] for name in _STORED if name not in ("trial_id", "generation")},
        where=sa.or_(
            sa.not_(executions.c.final),
            sa.and_(
                executions.c.status != sa.literal_column(str(_OK)),
                executions.c.recorded_at < sa.bindparam("failures_since"),
            ),
        ),
    ).values({name: sa.bindparam(name) for name in _STORED})
    return _sql(statement, dialect)


def _insert_scores(dialect: Any) -> str:
    insert = dialect.insert(scores).values({name: sa.bindparam(name) for name in _SCORED})
    return _sql(insert.on_conflict_do_nothing(index_elements=["trial_id", "generation", "scoring"]), dialect)


def _sql(statement: Any, dialect: Any) -> str:
    style = "qmark" if dialect is sqlite else "pyformat"
    return str(statement.compile(dialect=dialect.dialect(paramstyle=style)))


_INSERT = {name: _insert_executions(dialect) for name, dialect in _DIALECT.items()}
_INSERT_SCORES = {name: _insert_scores(dialect) for name, dialect in _DIALECT.items()}
_FIND: sa.Select[Any] = sa.select(*(executions.c[name] for name in _STORED)).where(
    executions.c.generation == sa.bindparam("generation"),
    executions.c.trial_id.in_(sa.bindparam("trial_ids", expanding=True)),
)
_FIND_SCORES: sa.Select[Any] = sa.select(*(scores.c[name] for name in _SCORED)).where(
    scores.c.generation == sa.bindparam("generation"),
    scores.c.trial_id.in_(sa.bindparam("trial_ids", expanding=True)),
)


def _rows(
    connection: sa.Connection, find: sa.Select[Any], generation: int, trial_ids: list[bytes]
) -> Iterable[tuple[Any, ...]]:
    found = connection.execute(find, {"generation": generation, "trial_ids": trial_ids})
    return cast("Iterable[tuple[Any, ...]]", found)


def _execute(connection: sa.Connection, sql: str, names: Sequence[str], rows: list[tuple[Any, ...]]) -> None:
    # By the driver: building a statement's parameters costs more than the row.
    if connection.dialect.positional:
        connection.exec_driver_sql(sql, rows)
    else:
        connection.exec_driver_sql(sql, [dict(zip(names, row, strict=True)) for row in rows])


def _row(entry: Entry, generation: int, now: float) -> tuple[Any, ...]:
    outcome = entry.outcome
    common = (
        outcome.configuration_digest,
        outcome.session_version,
        outcome.attempts,
        outcome.worker,
        outcome.queue_s,
        outcome.run_s,
        now,
        outcome.outputs_payload,
    )
    history = _history_payload(outcome.history) if outcome.history else b""
    if isinstance(outcome, TrialResult):
        body = (outcome.scores_payload, outcome.trace_payload, outcome.usage_payload, b"", history)
        return (outcome.trial_id, generation, entry.scoring, _OK, True, *common, *body)
    status, final = _STATUS[outcome.type], outcome.type.is_final
    return (
        *(outcome.trial_id, generation, entry.scoring, status, final),
        *common,
        *(b"", b"", b"", _failure(outcome), history),
    )


def _scores_row(entry: Entry, generation: int, now: float) -> tuple[Any, ...]:
    outcome = entry.outcome
    key = (outcome.trial_id, generation, entry.scoring)
    if isinstance(outcome, TrialResult):
        return (*key, _OK, now, outcome.scores_payload, b"")
    return (*key, _STATUS[outcome.type], now, b"", _failure(outcome))


def _failure(error: TrialError) -> bytes:
    return encode([error.message, error.traceback, error.retryable, error.fingerprint, error.retry_after_s])


def _history_payload(history: Iterable[Attempt]) -> bytes:
    return encode(
        [
            [one.number, one.worker, _STATUS[one.type], one.message, one.fingerprint, one.queue_s, one.run_s]
            for one in history
        ]
    )


def _history(payload: bytes) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(
            number=number,
            worker=worker,
            type=_ERROR_TYPE[status],
            message=message,
            fingerprint=fingerprint,
            queue_s=queue_s,
            run_s=run_s,
        )
        for number, worker, status, message, fingerprint, queue_s, run_s in cast("list[Any]", decode(payload))
    )


def _is_judged(status: int) -> bool:
    """Return whether an execution of that status has outputs that metrics have seen."""
    return status in (_OK, _STATUS[ErrorType.METRIC_EXCEPTION])


def _judged_again(outcome: TrialOutcome, row: Sequence[Any]) -> TrialOutcome:
    """Return *outcome* with the scores, or the metric's failure, of a row of `scores`."""
    (_, _, _, status, _, payload, failure) = row
    if status == _OK:
        return _as_result(outcome, payload)
    message, traceback, retryable, fingerprint, retry_after_s = decode(failure)
    return replace(
        _as_error(outcome),
        type=_ERROR_TYPE[status],
        message=message,
        traceback=traceback,
        retryable=retryable,
        fingerprint=fingerprint,
        retry_after_s=retry_after_s,
    )


def _as_result(outcome: TrialOutcome, scores_payload: bytes) -> TrialResult:
    if isinstance(outcome, TrialResult):
        return replace(outcome, scores_payload=scores_payload)
    return TrialResult(**_shared(outcome), scores_payload=scores_payload)


def _as_error(outcome: TrialOutcome) -> TrialError:
    if isinstance(outcome, TrialError):
        return outcome
    return TrialError(**_shared(outcome), type=ErrorType.METRIC_EXCEPTION, message="")


def _shared(outcome: TrialOutcome) -> dict[str, Any]:
    names = (
        *("trial_id", "configuration_digest", "session_version", "attempts", "worker"),
        *("queue_s", "run_s", "outputs_payload", "history"),
    )
    return {name: getattr(outcome, name) for name in names}


def _outcome(row: Sequence[Any]) -> TrialOutcome:
    (trial_id, _, _, status, _, seen, version, attempts, worker, queue_s, run_s, _, outputs, *body) = row
    payload, trace, usage, failure, history = body
    past = _history(history) if history else ()
    if status == _OK:
        return TrialResult(
            trial_id=trial_id,
            configuration_digest=seen,
            session_version=version,
            attempts=attempts,
            worker=worker,
            queue_s=queue_s,
            run_s=run_s,
            outputs_payload=outputs,
            scores_payload=payload,
            trace_payload=trace,
            usage_payload=usage,
            history=past,
        )
    message, traceback, retryable, fingerprint, retry_after_s = decode(failure)
    return TrialError(
        trial_id=trial_id,
        configuration_digest=seen,
        type=_ERROR_TYPE[status],
        message=message,
        traceback=traceback,
        retryable=retryable,
        fingerprint=fingerprint,
        retry_after_s=retry_after_s,
        session_version=version,
        attempts=attempts,
        worker=worker,
        queue_s=queue_s,
        run_s=run_s,
        outputs_payload=outputs,
        history=past,
    )

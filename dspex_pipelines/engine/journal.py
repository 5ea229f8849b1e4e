"""The append-only durable record of outcomes, through which they reach collection.

SQLite in WAL mode by default; several processes write at once in short ``BEGIN IMMEDIATE`` transactions.
Executions are unique by key, and the first final outcome of one wins.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.dialects import sqlite

from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import decode, digest, encode

SCHEMA_VERSION = 1
PAGE = 500
BUSY_MS = 60_000
CHECKPOINT_PAGES = 10_000

_metadata = sa.MetaData()
_executions = sa.Table(
    "executions",
    _metadata,
    # A rowid table: keys are random, so only their small index is written all over the place, never the wide rows.
    sa.Column("key", sa.LargeBinary(16), primary_key=True),
    sa.Column("trial_id", sa.LargeBinary(16), nullable=False),
    sa.Column("status", sa.SmallInteger, nullable=False),
    sa.Column("final", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("configuration_digest", sa.LargeBinary, nullable=False),
    sa.Column("session_version", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("worker", sa.String, nullable=False),
    sa.Column("queue_s", sa.Float, nullable=False),
    sa.Column("run_s", sa.Float, nullable=False),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.Column("outputs", sa.LargeBinary, nullable=False),
    sa.Column("scores", sa.LargeBinary, nullable=False),
    sa.Column("trace", sa.LargeBinary, nullable=False),
    sa.Column("usage", sa.LargeBinary, nullable=False),
    sa.Column("failure", sa.LargeBinary, nullable=False),
)
_COLUMNS = tuple(column.name for column in _executions.columns)
_OK = 0
# Numbers are on disk: append to the enum, never reorder it.
_STATUS = {kind: number for number, kind in enumerate(ErrorType, start=1)}
_ERROR_TYPE = {number: kind for kind, number in _STATUS.items()}


def execution_key(trial_id: bytes, generation: str, scoring: bytes) -> bytes:
    """Return the 16-byte key of one execution of a trial and its scores.

    *scoring* is a digest of labels and metric versions: outcomes scored otherwise are other rows.
    """
    return digest(trial_id, generation.encode(), scoring)


class Journal:
    """Outcomes by execution key, at a database URL. Used by one thread at a time; by many processes at once.

    Raises `DspexError` when the file cannot be opened or holds another schema.
    """

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url if "://" in url else f"sqlite:///{url}")
        self._engine: sa.Engine | None = None
        insert = sqlite.insert(_executions)
        self._insert = str(
            insert.on_conflict_do_update(
                index_elements=["key"],
                set_={name: insert.excluded[name] for name in _COLUMNS if name != "key"},
                where=sa.not_(_executions.c.final),
            ).compile(dialect=sqlite.dialect(paramstyle="qmark"))
        )

    def __enter__(self) -> Journal:
        path = Path(self._url.database or "")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            engine = sa.create_engine(self._url, poolclass=sa.StaticPool)
            event.listen(engine, "connect", _prepare)
            event.listen(engine, "begin", _begin)
            with engine.begin() as connection:
                _check_schema(connection, path)
        except (OSError, exc.DBAPIError) as error:
            raise DspexError(
                f"the journal {path} cannot be opened ({error}); give a folder on a local disk that can be written"
            ) from error
        self._engine = engine
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

    def record(self, entries: Sequence[tuple[bytes, TrialOutcome]]) -> int:
        """Make *entries* durable in one transaction; return how many rows are new or replaced.

        The first final outcome of a key stays; one that is to be run again gives way to a later one.
        """
        if not entries:
            return 0
        now = time.time()
        rows = [_row(key, outcome, now) for key, outcome in entries]
        with self._open().begin() as connection:
            return connection.exec_driver_sql(self._insert, rows).rowcount

    def find(self, keys: Sequence[bytes]) -> dict[bytes, TrialOutcome]:
        """Return the outcomes recorded under *keys*, by key."""
        found: dict[bytes, TrialOutcome] = {}
        for rows in self._pages(keys, _COLUMNS, final_only=False):
            for row in rows:
                found[cast("bytes", row[0])] = _outcome(row)
        return found

    def reusable(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return those of *keys* whose outcome is final, so that nothing need run for them."""
        pages = self._pages(keys, ("key",), final_only=True)
        return {cast("bytes", row[0]) for rows in pages for row in rows}

    def count(self) -> int:
        """Return how many executions are recorded."""
        with self._open().connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(_executions)).scalar_one()

    def _pages(
        self, keys: Sequence[bytes], columns: Sequence[str], *, final_only: bool
    ) -> Iterator[list[tuple[Any, ...]]]:
        where = " AND final" if final_only else ""
        names = ", ".join(f'"{name}"' for name in columns)
        for start in range(0, len(keys), PAGE):
            page = tuple(keys[start : start + PAGE])
            marks = ",".join("?" * len(page))
            statement = f"SELECT {names} FROM executions WHERE key IN ({marks}){where}"  # noqa: S608 - no values
            connection = self._open().raw_connection()
            try:
                yield connection.cursor().execute(statement, page).fetchall()  # type: ignore[union-attr]
            finally:
                connection.close()

    def _open(self) -> sa.Engine:
        if self._engine is None:
            raise DspexError("the journal is not open; use it as a context manager")
        return self._engine


def _prepare(connection: Any, _: object) -> None:
    # SQLAlchemy's recipe: the driver opens no transactions of its own, `begin` above does.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _check_schema(connection: sa.Connection, path: Path) -> None:
    found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if found == 0:
        _metadata.create_all(connection)
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif found != SCHEMA_VERSION:
        raise DspexError(
            f"the journal {path} has schema {found}, this release writes {SCHEMA_VERSION}; "
            "use the release that wrote it, or move the file away to start anew"
        )


def _row(key: bytes, outcome: TrialOutcome, now: float) -> tuple[Any, ...]:
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
    if isinstance(outcome, TrialResult):
        body = (outcome.scores_payload, outcome.trace_payload, outcome.usage_payload, b"")
        return (key, outcome.trial_id, _OK, True, *common, *body)
    failure = encode(
        [outcome.message, outcome.traceback, outcome.retryable, outcome.fingerprint, outcome.retry_after_s]
    )
    status = _STATUS[outcome.type]
    return (key, outcome.trial_id, status, outcome.type.is_final, *common, b"", b"", b"", failure)


def _outcome(row: Sequence[Any]) -> TrialOutcome:
    (_, trial_id, status, _, seen, version, attempts, worker, queue_s, run_s, _, outputs, *body) = row
    if status == _OK:
        scores, trace, usage, _ = body
        return TrialResult(
            trial_id=trial_id,
            configuration_digest=seen,
            session_version=version,
            attempts=attempts,
            worker=worker,
            queue_s=queue_s,
            run_s=run_s,
            outputs_payload=outputs,
            scores_payload=scores,
            trace_payload=trace,
            usage_payload=usage,
        )
    message, traceback, retryable, fingerprint, retry_after_s = decode(body[3])
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
    )

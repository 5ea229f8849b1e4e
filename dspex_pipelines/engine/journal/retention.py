"""How large a journal is, and deleting from it what nothing refers to any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from types import TracebackType

import sqlalchemy as sa

from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.engine.journal.rows import ERROR_TYPE, OK
from dspex_pipelines.engine.journal.schema import executions, generations, scores
from dspex_pipelines.engine.journal.sql import statements

CHUNK = 20_000
"""Rows that a transaction looks at: other writers wait for one at most."""
PAGE = 5_000
ANY_SCORING = b""
OK_NAME = "ok"
_kept = sa.Table(
    "kept",
    sa.MetaData(),
    *(sa.Column(name, executions.c[name].type, primary_key=True) for name in ("trial_id", "generation", "scoring")),
    prefixes=["TEMPORARY"],
    sqlite_with_rowid=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Executions of one generation and outcome."""

    generation: str
    """Empty for those that later runs reuse; else the run that reused nothing."""
    status: str
    """`ok`, or the type of the error."""
    executions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """What a journal takes on disk."""

    data: int
    log: int
    """SQLite's write-ahead log and its index; PostgreSQL's is the server's own, and not counted."""

    @property
    def total(self) -> int:
        """Both together."""
        return self.data + self.log


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """So many executions, and scores that are kept beside them."""

    executions: int
    scores: int


def groups(journal: Journal) -> list[Group]:
    """Return how many executions there are of each generation and outcome, oldest generation first."""
    number, name, status = generations.c.id, generations.c.name, executions.c.status
    query = (
        sa.select(name, status, sa.func.count())
        .select_from(executions.join(generations, number == executions.c.generation))
        .group_by(number, name, status)
        .order_by(number, status)
    )
    found = journal.database.read(lambda connection: connection.execute(query).all())
    return [
        Group(generation=name, status=OK_NAME if status == OK else ERROR_TYPE[status].value, executions=count)
        for name, status, count in found
    ]


def size(journal: Journal) -> Bytes:
    """Return what the journal takes on disk."""
    file = journal.database.file
    if file is not None:
        beside = (file.with_name(file.name + end) for end in ("-wal", "-shm"))
        return Bytes(data=file.stat().st_size, log=sum(one.stat().st_size for one in beside if one.exists()))
    names = ", ".join(f"'{table.name}'" for table in (executions, scores, generations))
    query = f"SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname IN ({names}) AND relkind = 'r'"  # noqa: S608
    found = journal.database.read(lambda connection: connection.exec_driver_sql(query).scalar_one())
    return Bytes(data=int(found), log=0)


class Retention:
    """Tells what is kept from what nothing refers to; the former is named by `keep`, a page at a time.

    Memory is bounded whatever the number of trials: they are kept in a temporary table. Nothing is deleted that was
    recorded at *recorded_before* (seconds since the epoch) or later.
    """

    def __init__(self, journal: Journal, *, recorded_before: float) -> None:
        self._journal = journal
        self._lent: AbstractContextManager[sa.Connection] = journal.database.reading()
        self._recorded_before = recorded_before

    def __enter__(self) -> Retention:
        self._connection = self._lent.__enter__()
        _kept.create(self._connection)
        self._connection.commit()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.rollback()
        _kept.drop(self._connection)
        self._connection.commit()
        self._lent.__exit__(kind, error, traceback)

    def keep(self, generation: str, trials: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep the executions of these trials, and of their scores the one of that scoring; `ANY_SCORING` keeps all."""
        known = sa.select(generations.c.id).where(generations.c.name == generation)
        number = self._connection.execute(known).scalar_one_or_none()
        if number is None:
            return
        sql = statements(self._connection.dialect.name)
        pages = iter(trials)
        while page := list(islice(pages, PAGE)):
            self._begin()
            rows = [(bytearray(trial_id), number, bytearray(scoring)) for trial_id, scoring in page]
            sql.add(self._connection, _kept, rows)
            self._connection.commit()

    def has_scores(self) -> bool:
        """Return whether any scores are kept beside those that executions were made with."""
        return self._connection.execute(sa.select(sa.exists().select_from(scores))).scalar_one()

    def unreferenced(self, *, recorded_before: float | None = None) -> Count:
        """Return how much would be deleted, or would were the bound an earlier one."""
        bound = self._recorded_before if recorded_before is None else recorded_before
        found = {
            table.name: self._connection.execute(
                sa.select(sa.func.count()).select_from(table).where(*stale)
            ).scalar_one()
            for table, stale in _deletions(bound)
        }
        return Count(executions=found[executions.name], scores=found[scores.name])

    def delete(self, on_progress: Callable[[int, int], None] = lambda _, __: None) -> Count:
        """Delete what nothing refers to, a chunk at a time; *on_progress* is told rows looked at, and rows in all.

        What it raises ends the deletion; what is deleted by then stays deleted.
        """
        deletions = _deletions(self._recorded_before)
        deleted = {table.name: 0 for table, _ in deletions}
        spans = {table.name: self._span(table) for table, _ in deletions}
        total = sum(last - first for first, last in spans.values())
        looked_at = 0
        for table, stale in deletions:
            first, last = spans[table.name]
            for start in range(first, last, CHUNK):
                stop = min(last, start + CHUNK)
                self._begin()
                chunk = sa.delete(table).where(table.c.id > start, table.c.id <= stop, *stale)
                deleted[table.name] += self._connection.execute(chunk).rowcount
                self._connection.commit()
                looked_at += stop - start
                on_progress(looked_at, total)
        return Count(executions=deleted[executions.name], scores=deleted[scores.name])

    def reclaim(self) -> None:
        """Give the room of what was deleted back: to the file system on SQLite, to later rows on PostgreSQL."""
        if self._connection.dialect.name == "sqlite":
            self._connection.exec_driver_sql("VACUUM")
            self._connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            return
        with self._journal.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"VACUUM (ANALYZE) {executions.name}, {scores.name}")

    def _begin(self) -> None:
        # A connection to read by opens no transaction on SQLite by itself.
        if self._connection.dialect.name == "sqlite":
            self._connection.exec_driver_sql("BEGIN IMMEDIATE")

    def _span(self, table: sa.Table) -> tuple[int, int]:
        """Return the number before the first row's, and the last row's."""
        first, last = self._connection.execute(sa.select(sa.func.min(table.c.id), sa.func.max(table.c.id))).one()
        self._connection.commit()
        return (0, 0) if first is None else (first - 1, last)


def _deletions(recorded_before: float) -> tuple[tuple[sa.Table, tuple[sa.ColumnElement[bool], ...]], ...]:
    """Return what goes of each table; of scores first, so that none is left without its execution."""
    return ((scores, _stale_scores(recorded_before)), (executions, _stale_executions(recorded_before)))


def _same_execution(one: sa.Table, other: sa.Table) -> sa.ColumnElement[bool]:
    return sa.and_(one.c.trial_id == other.c.trial_id, one.c.generation == other.c.generation)


def _stale_scores(recorded_before: float) -> tuple[sa.ColumnElement[bool], ...]:
    scoring = _kept.c.scoring
    kept = sa.exists().where(
        _same_execution(_kept, scores), sa.or_(scoring == scores.c.scoring, scoring == sa.literal(ANY_SCORING))
    )
    return (scores.c.recorded_at < recorded_before, ~kept)


def _stale_executions(recorded_before: float) -> tuple[sa.ColumnElement[bool], ...]:
    kept = sa.exists().where(_same_execution(_kept, executions))
    # Its outputs are what they were made of.
    judged_since = sa.exists().where(_same_execution(scores, executions), scores.c.recorded_at >= recorded_before)
    return (executions.c.recorded_at < recorded_before, ~kept, ~judged_since)

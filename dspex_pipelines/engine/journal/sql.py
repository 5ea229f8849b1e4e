"""The statements that the journal spends its time in, each as its database takes many rows the quickest."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any, Protocol, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from dspex_pipelines.engine.journal.rows import OK, PLAIN, SHARED, STATUS, Row
from dspex_pipelines.engine.journal.schema import executions, scores

_KEYS = {executions.name: ("trial_id", "generation"), scores.name: ("trial_id", "generation", "scoring")}
_NO_TRACE, _NO_TRACE_POSTGRESQL = "X''", "''::bytea"
"""In place of a trace that nobody looks at: those of calls to models are the largest part of a row."""
_SETTLED = "SELECT trial_id, scoring FROM executions"
_ANY = "generation = %s AND trial_id = ANY(%b)"
_PASSING = ", ".join(str(number) for kind, number in STATUS.items() if not kind.is_final)
_GIVES_WAY = {executions.name: "NOT executions.final", scores.name: f"scores.status IN ({_PASSING})"}
# SQLite before 3.32 takes 999 variables.
_BLOCKS = tuple(1 << power for power in reversed(range(10 if sqlite3.sqlite_version_info >= (3, 32) else 6)))


def columns(table: sa.Table) -> tuple[str, ...]:
    """Return the names of what is written and read: all but the row's own number."""
    return tuple(column.name for column in table.columns if column.name != "id")


class Statements(Protocol):
    """What differs between the databases."""

    def upsert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[Row], failures_since: float) -> None:
        """Write *rows* where there is none of their key, or one that gives way.

        One gives way that is to be run again, or is a failure from before *failures_since*.
        """
        ...

    def add(self, connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
        """Write *rows* where there is none of their key."""
        ...

    def select(
        self,
        connection: sa.Connection,
        table: sa.Table,
        generation: int,
        trial_ids: Collection[bytes],
        *,
        traces: bool = True,
    ) -> Sequence[Row]:
        """Return the rows of these trials, their traces empty without *traces*."""
        ...

    def select_settled(
        self, connection: sa.Connection, generation: int, trial_ids: Collection[bytes], failures_since: float
    ) -> Sequence[Row]:
        """Return id and scoring of those of these trials that have succeeded, or failed for good since then."""
        ...

    def between(
        self, connection: sa.Connection, generation: int, bounds: tuple[bytes, bytes], most: int
    ) -> set[bytes] | None:
        """Return the trials between the *bounds*, these included, that have an execution; None for *most* or more."""
        ...


def statements(dialect: str) -> Statements:
    """Return those of a dialect, by SQLAlchemy's name for it."""
    return _POSTGRESQL if dialect == "postgresql" else SQLITE


class _Sqlite:
    """Many rows in one statement: it is one step, and for as long as that takes other threads have the interpreter."""

    def upsert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[Row], failures_since: float) -> None:
        for block in _blocks(rows):
            values = (*chain.from_iterable(block), failures_since)
            connection.exec_driver_sql(self._upsert(table, len(block)), values)

    def upsert_now(
        self, connection: sqlite3.Connection, table: sa.Table, rows: Sequence[Row], failures_since: float
    ) -> None:
        """Do the same by the driver alone."""
        for block in _blocks(rows):
            connection.execute(self._upsert(table, len(block)), (*chain.from_iterable(block), failures_since))

    def upsert_plain(
        self, connection: sqlite3.Connection, rows: Sequence[Row], shared: Row, failures_since: float
    ) -> None:
        """Do the same with executions of which *rows* are what is `plain`, and *shared* what is `SHARED`."""
        for block in _blocks(rows):
            values = (*shared, *chain.from_iterable(block), failures_since)
            connection.execute(self._upsert_plain(len(block)), values)

    def add(self, connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
        for block in _blocks(rows):
            sql = f"{self._insert(table, len(block))} ON CONFLICT DO NOTHING"
            connection.exec_driver_sql(sql, tuple(chain.from_iterable(block)))

    def select(
        self,
        connection: sa.Connection,
        table: sa.Table,
        generation: int,
        trial_ids: Collection[bytes],
        *,
        traces: bool = True,
    ) -> Sequence[Row]:
        return self._fetched(connection, partial(self._select, table, traces), generation, trial_ids)

    def select_settled(
        self, connection: sa.Connection, generation: int, trial_ids: Collection[bytes], failures_since: float
    ) -> Sequence[Row]:
        return self._fetched(connection, self._select_settled, generation, trial_ids, failures_since)

    @staticmethod
    def _fetched(
        connection: sa.Connection,
        statement: Callable[[int], str],
        generation: int,
        trial_ids: Collection[bytes],
        *more: float,
    ) -> Sequence[Row]:
        found: list[Any] = []
        for block in _filled_blocks(list(map(bytearray, trial_ids))):
            found += connection.exec_driver_sql(statement(len(block)), (generation, *block, *more)).fetchall()
        return found

    def between(
        self, connection: sa.Connection, generation: int, bounds: tuple[bytes, bytes], most: int
    ) -> set[bytes] | None:
        return _few_between(connection, "?", (*map(bytearray, bounds), generation, most))

    @cache  # noqa: B019 - one instance, few sizes
    def _upsert(self, table: sa.Table, count: int) -> str:
        return f"{self._insert(table, count)} {_on_conflict(table, '?')}"

    @cache  # noqa: B019 - one instance, few sizes
    def _upsert_plain(self, count: int) -> str:
        own = [name for name in columns(executions) if name not in PLAIN and name not in SHARED]
        names = (*SHARED, *own, *PLAIN)
        # Numbered: what is shared is handed over once, and the other parameters follow it.
        shared = (f"?{number}" for number in range(1, len(SHARED) + 1))
        row = ", ".join((*shared, *("?" * len(own)), *PLAIN.values()))
        rows = ", ".join([f"({row})"] * count)
        return f"{_into(executions, names)} VALUES {rows} {_on_conflict(executions, '?')}"

    @staticmethod
    def _insert(table: sa.Table, count: int) -> str:
        row = f"({', '.join('?' * len(columns(table)))})"
        return f"{_into(table)} VALUES {', '.join([row] * count)}"

    @cache  # noqa: B019 - one instance, few sizes
    def _select(self, table: sa.Table, traces: bool, count: int) -> str:  # noqa: FBT001 - a key of the cache
        return f"{_from(table, '' if traces else _NO_TRACE)} WHERE {_among(count)}"

    @cache  # noqa: B019 - one instance, few sizes
    def _select_settled(self, count: int) -> str:
        return f"{_SETTLED} WHERE {_among(count)} AND {_is_settled('?')}"


class _PostgreSql:
    """A list for each column, in binary: as text it takes four times as long."""

    def upsert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[Row], failures_since: float) -> None:
        width = len(_KEYS[table.name])
        # Two transactions that lock the same rows must do so in the same order.
        waiting = sorted(rows, key=lambda row: row[:width])
        while waiting:
            # No statement may meet a key twice.
            now = {tuple(map(_hashable, row[:width])): row for row in reversed(waiting)}
            taken = set(map(id, now.values()))
            values = [list(column) for column in zip(*reversed(now.values()), strict=True)]
            connection.exec_driver_sql(self._upsert(table), (*values, failures_since))
            waiting = [row for row in waiting if id(row) not in taken]

    def add(self, connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
        values = tuple(list(column) for column in zip(*rows, strict=True))
        connection.exec_driver_sql(f"{self._insert(table)} ON CONFLICT DO NOTHING", values)

    def select(
        self,
        connection: sa.Connection,
        table: sa.Table,
        generation: int,
        trial_ids: Collection[bytes],
        *,
        traces: bool = True,
    ) -> Sequence[Row]:
        found = connection.exec_driver_sql(self._select(table, traces), (generation, list(trial_ids))).fetchall()
        return cast("Sequence[Row]", found)

    def select_settled(
        self, connection: sa.Connection, generation: int, trial_ids: Collection[bytes], failures_since: float
    ) -> Sequence[Row]:
        statement = f"{_SETTLED} WHERE {_ANY} AND {_is_settled('%s')}"
        found = connection.exec_driver_sql(statement, (generation, list(trial_ids), failures_since)).fetchall()
        return cast("Sequence[Row]", found)

    def between(
        self, connection: sa.Connection, generation: int, bounds: tuple[bytes, bytes], most: int
    ) -> set[bytes] | None:
        return _few_between(connection, "%s", (*bounds, generation, most))

    @cache  # noqa: B019 - one instance
    def _upsert(self, table: sa.Table) -> str:
        return f"{self._insert(table)} {_on_conflict(table, '%s')}"

    @staticmethod
    def _insert(table: sa.Table) -> str:
        dialect = postgresql.dialect()
        types = (table.c[name].type.compile(dialect) for name in columns(table))
        lists = ", ".join(f"%b::{kind}[]" for kind in types)
        return f"{_into(table)} SELECT * FROM unnest({lists})"  # noqa: S608 - our own names

    @cache  # noqa: B019 - one instance
    def _select(self, table: sa.Table, traces: bool) -> str:  # noqa: FBT001 - a key of the cache
        return f"{_from(table, '' if traces else _NO_TRACE_POSTGRESQL)} WHERE {_ANY}"


SQLITE, _POSTGRESQL = _Sqlite(), _PostgreSql()


def _hashable(value: object) -> object:
    return bytes(value) if isinstance(value, bytearray) else value


def _into(table: sa.Table, names: Sequence[str] = ()) -> str:
    return f"INSERT INTO {table.name} ({', '.join(names or columns(table))})"


def _from(table: sa.Table, no_trace: str = "") -> str:
    names = (no_trace if no_trace and name == "trace" else name for name in columns(table))
    return f"SELECT {', '.join(names)} FROM {table.name}"  # noqa: S608 - our own names


def _among(count: int) -> str:
    return f"generation = ? AND trial_id IN ({', '.join('?' * count)})"


def _is_settled(parameter: str) -> str:
    return f"(status = {OK} OR (final AND recorded_at >= {parameter}))"


def _few_between(connection: sa.Connection, parameter: str, given: tuple[Any, ...]) -> set[bytes] | None:
    between, most = _between(parameter), given[-1]
    # Counted first: that is done where they are, and to bring them here for nothing costs more than what it saves.
    count = connection.exec_driver_sql(f"SELECT count(*) FROM ({between}) AS few", given).scalar_one()  # noqa: S608
    if not 0 < count < most:
        return None if count else set()
    found = connection.exec_driver_sql(between, given).fetchall()
    # Others may have written since it was counted.
    return {row[0] for row in found} if len(found) < most else None


def _between(parameter: str) -> str:
    where = f"trial_id >= {parameter} AND trial_id <= {parameter} AND generation = {parameter}"
    return f"SELECT trial_id FROM executions WHERE {where} LIMIT {parameter}"  # noqa: S608 - our own names


def _on_conflict(table: sa.Table, parameter: str) -> str:
    key = _KEYS[table.name]
    changes = ", ".join(f"{name} = excluded.{name}" for name in columns(table) if name not in key)
    failed_before = f"{table.name}.status <> {OK} AND {table.name}.recorded_at < {parameter}"
    where = f"{_GIVES_WAY[table.name]} OR ({failed_before})"
    return f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes} WHERE {where}"


def _blocks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield slices of a few sizes, so that a few statements are prepared once and used again."""
    start = 0
    while start < len(items):
        size = next(size for size in _BLOCKS if size <= len(items) - start)
        yield items[start : start + size]
        start += size


def _filled_blocks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield slices of the same sizes, the last filled up with its last item."""
    largest = _BLOCKS[0]
    for start in range(0, len(items), largest):
        block = items[start : start + largest]
        size = next(size for size in reversed(_BLOCKS) if size >= len(block))
        yield [*block, *[block[-1]] * (size - len(block))]

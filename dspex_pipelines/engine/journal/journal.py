"""The append-only durable record of outcomes, through which they reach collection.

SQLite in WAL mode by default, PostgreSQL by URL; several processes write at once, in short transactions. Executions are
unique by (trial, generation), and the first final outcome of one wins. The scores made when a program ran are kept with
its outcome; those of other labels or metrics, made later from the same outputs, beside it.
"""

from __future__ import annotations

import sqlite3
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dspex_pipelines.engine.journal.database import Database
from dspex_pipelines.engine.journal.rows import (
    JUDGED,
    Entry,
    Row,
    execution_row,
    judged_again,
    outcome_of,
    scores_row,
)
from dspex_pipelines.engine.journal.schema import executions, generations, scores
from dspex_pipelines.engine.journal.sql import SQLITE, Statements, columns, statements
from dspex_pipelines.model.outcome import TrialOutcome
from dspex_pipelines.model.payload import DIGEST_BYTES
from dspex_pipelines.model.trial import BEGINNING_BYTES, CONFIGURATION_BYTES

__all__ = ["Entry", "Found", "Journal"]

PAGE = 512
"""Executions that a look-up reads at a time."""
WORTH_A_LOOK = 32
"""Trials with the same beginning that are worth a statement of their own."""
FEW = 4
"""Where so large a part as one in `FEW` is there, a search for each trial costs less than fetching those."""
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_RECORDED_AT = columns(executions).index("recorded_at")
_OUTPUTS = columns(executions).index("outputs")


class Found(NamedTuple):
    """An execution as it is recorded; `scored` says whether the scores are those that were asked for."""

    outcome: TrialOutcome
    scored: bool
    recorded_at: float
    """Seconds since the epoch."""
    rescorable: bool = False
    """Whether its outputs are known and were first judged by something else, so that metrics alone can be run."""


class Journal:
    """Outcomes at a database URL, or in an SQLite file. Many threads and processes may use one at once.

    Entering raises `JournalError` when the database cannot be opened or was written by a later release; so does
    everything else when it cannot be read or written.
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self._generations: dict[str, int] = {"": 0}

    def __enter__(self) -> Journal:
        self.database.open()
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
        self.database.close()

    @property
    def url(self) -> sa.URL:
        """Where it is; as text its password is not told."""
        return self.database.url

    @property
    def engine(self) -> sa.Engine:
        """The open database; raises `DspexError` where it is not."""
        return self.database.engine

    def record(self, generation: str, entries: Sequence[Entry], *, failures_since: float = 0.0) -> None:
        """Make *entries* durable in one transaction.

        The first final outcome of an execution stays; one that is to be run again gives way to a later one, and so
        does a failure from before *failures_since* (seconds since the epoch).
        """
        if not entries:
            return

        def write(connection: sa.Connection) -> int:
            number = self._generations.get(generation)
            if number is None:
                number = _made_generation(connection, generation)
            sql = statements(connection.dialect.name)
            for table, rows in _rows(entries, number):
                sql.upsert(connection, table, rows, failures_since)
            return number

        # Only what is committed may be remembered: a number that was rolled back is given to the next name.
        self._generations[generation] = self.database.write(write)

    def record_now(self, generation: str, entries: Sequence[Entry], *, failures_since: float = 0.0) -> bool:
        """Do what `record` does if nothing has to be waited for, and return whether it is done. By one thread only."""
        number = self._generations.get(generation)
        if number is None:
            return False

        def write(connection: sqlite3.Connection) -> None:
            if plain := [row for entry in entries if (row := entry.plain) is not None]:
                SQLITE.upsert_plain(connection, plain, (number, time.time()), failures_since)
            if len(plain) < len(entries):
                for table, rows in _rows([entry for entry in entries if entry.plain is None], number):
                    SQLITE.upsert_now(connection, table, rows, failures_since)

        return self.database.write_now(write)

    def find(self, generation: str, wanted: Mapping[bytes, bytes], *, traces: bool = True) -> dict[bytes, Found]:
        """Return what is recorded of the trials in *wanted*, trial id to scoring; without *traces*, but for those."""

        def read(connection: sa.Connection) -> dict[bytes, Found]:
            number = self._number(connection, generation)
            if number is None:
                return {}
            sql = statements(connection.dialect.name)
            possible = list(_possible(sql, connection, number, wanted))
            return _found(sql, connection, number, possible, wanted, traces=traces)

        return self.database.read(read) if wanted else {}

    def look_up(
        self, generation: str, wanted: Mapping[bytes, bytes], *, failures_since: float = 0.0
    ) -> tuple[set[bytes], dict[bytes, Found]]:
        """Return those in *wanted*, trial id to scoring, that need nothing, and what is recorded of others.

        A trial needs nothing that has succeeded, or failed for good since *failures_since* (seconds since the epoch),
        and was then judged by what is asked for: of such no outcome is read, and of the others no trace.
        """

        def read(connection: sa.Connection) -> tuple[set[bytes], dict[bytes, Found]]:
            number = self._number(connection, generation)
            if number is None:
                return set(), {}
            sql = statements(connection.dialect.name)
            possible = list(_possible(sql, connection, number, wanted))
            if not possible:
                return set(), {}
            rows = sql.select_settled(connection, number, possible, failures_since)
            settled = {trial_id for trial_id, scoring in rows if scoring == wanted[trial_id]}
            rest = [trial_id for trial_id in possible if trial_id not in settled]
            return settled, _found(sql, connection, number, rest, wanted, traces=False)

        return self.database.read(read) if wanted else (set(), {})

    def _number(self, connection: sa.Connection, generation: str) -> int | None:
        number = self._generations.get(generation)
        if number is None:
            known = connection.execute(sa.select(generations.c.id).where(generations.c.name == generation))
            number = known.scalar_one_or_none()
        return number

    def count(self) -> int:
        """Return how many executions are recorded."""
        query = sa.select(sa.func.count()).select_from(executions)
        return self.database.read(lambda connection: connection.execute(query).scalar_one())


def _possible(sql: Statements, connection: sa.Connection, generation: int, wanted: Iterable[bytes]) -> Iterator[bytes]:
    """Yield those that may be recorded; where few are that lie among them, only those that are.

    So a look at the index settles neighbouring examples, or small neighbourhoods of a configuration together, that were
    never run and have none recorded among them, instead of a search for each of their trials.
    """
    trial_ids = sorted(wanted)
    start = 0
    while start < len(trial_ids):
        stop = _end_of_alike(trial_ids, start)
        alike = trial_ids[start:stop]
        start = stop
        if len(alike) >= WORTH_A_LOOK:
            most = len(alike) // FEW
            there = sql.between(connection, generation, (alike[0], alike[-1]), most)
            if there is not None:
                yield from there.intersection(alike)
                continue
        yield from alike


def _end_of_alike(trial_ids: Sequence[bytes], start: int) -> int:
    """Return where the neighbourhood at *start* ends; a small one with the next small ones of its configuration."""
    stop = _end(trial_ids, start, BEGINNING_BYTES)
    if stop - start < WORTH_A_LOOK:
        last = _end(trial_ids, start, CONFIGURATION_BYTES)
        while stop < last and (after := _end(trial_ids, stop, BEGINNING_BYTES)) - stop < WORTH_A_LOOK:
            stop = after
    return stop


def _end(trial_ids: Sequence[bytes], start: int, length: int) -> int:
    """Return where those of the sorted *trial_ids* end that have the first *length* bytes of the one at *start*."""
    return bisect_right(trial_ids, trial_ids[start][:length].ljust(DIGEST_BYTES, b"\xff"), start + 1)


def _found(
    sql: Statements,
    connection: sa.Connection,
    generation: int,
    trial_ids: Sequence[bytes],
    wanted: Mapping[bytes, bytes],
    *,
    traces: bool = True,
) -> dict[bytes, Found]:
    found: dict[bytes, Found] = {}
    for start in range(0, len(trial_ids), PAGE):
        unlike: list[bytes] = []
        for row in sql.select(connection, executions, generation, trial_ids[start : start + PAGE], traces=traces):
            trial_id, _, scoring, status, *_ = row
            rescorable = scoring != wanted[trial_id] and status in JUDGED and bool(row[_OUTPUTS])
            if rescorable:
                unlike.append(trial_id)
            found[trial_id] = Found(outcome_of(row), not rescorable, row[_RECORDED_AT], rescorable)
        for row in sql.select(connection, scores, generation, unlike) if unlike else ():
            trial_id, _, scoring, _, recorded_at, *_ = row
            if scoring == wanted[trial_id]:
                outcome = judged_again(found[trial_id].outcome, row)
                found[trial_id] = Found(outcome=outcome, scored=True, recorded_at=recorded_at, rescorable=True)
    return found


def _rows(entries: Sequence[Entry], generation: int) -> Iterator[tuple[sa.Table, list[Row]]]:
    now = time.time()
    if ran := [execution_row(entry, generation, now) for entry in entries if not entry.rescored]:
        yield executions, ran
    if judged := [scores_row(entry, generation, now) for entry in entries if entry.rescored]:
        yield scores, judged


def _made_generation(connection: sa.Connection, name: str) -> int:
    insert = _INSERT[connection.dialect.name](generations)
    connection.execute(insert.values(name=name).on_conflict_do_nothing())
    return connection.execute(sa.select(generations.c.id).where(generations.c.name == name)).scalar_one()

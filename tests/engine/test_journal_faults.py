"""A journal that is locked, full, damaged or gone says so, has nothing half-written, and goes on when it can."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from dspex_pipelines.engine.journal import database as journal_database
from dspex_pipelines.engine.journal.journal import Entry, Journal
from dspex_pipelines.engine.journal.schema import executions, generations
from dspex_pipelines.errors import JournalError
from tests.engine.test_journal import RESULT, ROOT, SCORING, _entries, _found, _id


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


# ---------------------------------------------------------------------- locks


def test_readers_and_who_opens_it_wait_for_no_writer(journal_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_database, "BUSY_S", 0.1)
    with Journal(journal_url) as journal:
        journal.record("", _entries(1))
        with journal.database.writing() as writer:
            writer.execute(sa.update(executions).values(worker="half-done"))
            with Journal(journal_url) as other:
                assert other.count() == 1
                assert _found(other, 1)[_id(1)].outcome.worker == "w"
                assert _found(other, 1, generation="never-seen") == {}


def test_a_reader_holds_up_no_checkpoint(sqlite_file: Path) -> None:
    with Journal(str(sqlite_file)) as journal:
        journal.record("", _entries(1, 2, 3))
        with journal.database.reading() as reader:
            assert len(reader.execute(sa.select(executions.c.id)).fetchall()) == 3
            journal.record("", _entries(4))
            with sqlite3.connect(sqlite_file) as other:
                assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, "not busy"
        assert sqlite_file.with_name("journal.sqlite-wal").stat().st_size == 0


def test_a_lock_that_stays_is_named_and_what_follows_is_recorded(
    sqlite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_database, "BUSY_S", 0.1)
    with Journal(str(sqlite_file)) as journal:
        with sqlite3.connect(sqlite_file, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(JournalError, match=r"journal\.sqlite is locked.*fuser .*journal\.sqlite"):
                journal.record("", _entries(1))
            other.execute("ROLLBACK")
        assert journal.count() == 0
        journal.record("", _entries(1))
        assert journal.count() == 1


def test_threads_write_and_look_up_at_once(journal_url: str) -> None:
    with Journal(journal_url) as journal, ThreadPoolExecutor(8) as threads:
        written = [
            threads.submit(journal.record, "", _entries(*range(start, start + 40))) for start in range(0, 800, 20)
        ]
        looked_up = [threads.submit(_found, journal, *range(800)) for _ in range(20)]
        for one in written + looked_up:
            one.result()
        assert len(_found(journal, *range(820))) == journal.count() == 820


def test_all_may_open_it_at_once_when_it_is_new(journal_url: str) -> None:
    together = threading.Barrier(12)

    def open_and_record(number: int) -> None:
        together.wait()
        with Journal(journal_url) as journal:
            journal.record(f"run-{number % 3}", _entries(number))

    with ThreadPoolExecutor(12) as threads:
        for one in [threads.submit(open_and_record, number) for number in range(12)]:
            one.result()
    with Journal(journal_url) as journal:
        assert journal.count() == 12
        assert [len(_found(journal, *range(12), generation=f"run-{number}")) for number in range(3)] == [4, 4, 4]


def test_a_file_that_another_process_is_making_is_waited_for(
    sqlite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite says so at once: the file has no write-ahead log yet, and its maker may be waiting for this reader."""
    maker = sqlite3.connect(sqlite_file, isolation_level=None)
    maker.execute("CREATE TABLE another (id INTEGER)")
    maker.execute("BEGIN IMMEDIATE")
    waits: list[float] = []

    def meanwhile(wait_s: float) -> None:
        waits.append(wait_s)
        if maker.in_transaction:
            maker.execute("COMMIT")

    monkeypatch.setattr(journal_database.time, "sleep", meanwhile)
    with Journal(str(sqlite_file)) as journal:
        journal.record("", _entries(1))
        assert journal.count() == 1
    assert len(waits) == 1


# ---------------------------------------------------------------------- nothing half-written


def test_no_execution_and_no_scoring_can_be_there_twice(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        journal.record("", [*_entries(1), Entry(b"o" * 16, RESULT._replace(trial_id=_id(1)), rescored=True)])
        for name in ("executions", "scores"):
            table = sa.Table(name, sa.MetaData(), autoload_with=journal.engine)
            copied = [column for column in table.columns if column.name != "id"]
            again = sa.insert(table).from_select([column.name for column in copied], sa.select(*copied))
            with pytest.raises(exc.IntegrityError), journal.engine.begin() as connection:
                connection.execute(again)


def test_a_transaction_that_fails_leaves_nothing_and_remembers_nothing(
    journal_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its generation's number is given to the next one."""
    unwritable = [*_entries(*range(600)), Entry(SCORING, RESULT._replace(trial_id=_id(1), worker=object()))]  # type: ignore[arg-type]
    with Journal(journal_url) as journal:
        with pytest.raises(JournalError, match="could not be written"):
            journal.record("run-a", unwritable)
        with Journal(journal_url) as other:
            other.record("run-b", _entries(7))
        journal.record("run-a", _entries(8))
        assert journal.count() == 2
        with journal.database.reading() as connection:
            assert set(connection.execute(sa.select(generations.c.name)).scalars()) == {"", "run-a", "run-b"}
    with Journal(journal_url) as journal:
        assert list(_found(journal, 7, 8, generation="run-a")) == [_id(8)]
        assert list(_found(journal, 7, 8, generation="run-b")) == [_id(7)]


FILLER = """
import resource, sys
from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.errors import JournalError
from tests.engine.test_journal import _entries, _found
with Journal(sys.argv[1]) as journal:
    journal.record("", _entries(*range(100)))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, unlimited[1]))
    try:
        for start in range(100, 100_000, 1_000):
            journal.record("", _entries(*range(start, start + 1_000)))
    except JournalError as error:
        print(start, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    kept = len(_found(journal, *range(start + 1_000)))
    journal.record("", _entries(*range(start, start + 1_000)))
    print(kept == start, journal.count() == start + 1_000)
"""


def test_where_files_may_grow_no_further_it_says_so_and_goes_on_when_they_may(sqlite_file: Path) -> None:
    """As on a full disk, the operating system refuses to write."""
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(sqlite_file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=True,
    )
    said, then = done.stdout.splitlines()
    assert "journal.sqlite could not be read or written by the operating system" in said
    assert "what was recorded before is kept" in said
    assert then == "True True"


def test_a_database_without_room_says_so_and_goes_on_when_there_is(sqlite_file: Path) -> None:
    with Journal(str(sqlite_file)) as journal:
        journal.record("", _entries(*range(100)))
        _limit(journal, lambda pages: pages + 20)
        with pytest.raises(JournalError, match=r"has no room left.*dspex journal prune"):
            journal.record("", _entries(*range(100, 2_000)))
        assert journal.count() == 100
        _limit(journal, lambda pages: pages + 10_000)
        journal.record("", _entries(*range(100, 2_000)))
        assert journal.count() == 2_000


def _limit(journal: Journal, most: Callable[[int], int]) -> None:
    with journal.database.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {most(pages)}")


# ---------------------------------------------------------------------- damage


def test_what_is_no_database_is_named_with_the_ways_out(sqlite_file: Path) -> None:
    sqlite_file.write_text("outcomes, " * 10_000)
    with (
        pytest.raises(JournalError, match=r"is not an SQLite database.*sqlite3 .*journal\.sqlite \.recover"),
        Journal(str(sqlite_file)),
    ):
        pass


def test_a_damaged_database_is_named_with_the_ways_out(sqlite_file: Path) -> None:
    with Journal(str(sqlite_file)) as journal:
        journal.record("", _entries(*range(2_000)))
    with sqlite_file.open("r+b") as file:
        for page in range(4, sqlite_file.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    with Journal(str(sqlite_file)) as journal:
        with pytest.raises(JournalError, match=r"journal\.sqlite is damaged.*restore it from a back-up"):
            _found(journal, *range(2_000))
        with pytest.raises(JournalError, match="is damaged"):
            journal.record("", _entries(*range(2_000)))


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_journal_in_memory_is_refused(url: str) -> None:
    with pytest.raises(JournalError, match="give a path"), Journal(url):
        pass


# ---------------------------------------------------------------------- a server that goes away


def test_connections_that_were_dropped_cost_nothing(postgresql_url: str) -> None:
    with Journal(postgresql_url) as journal:
        journal.record("", _entries(1))
        _drop_connections(postgresql_url)
        assert journal.count() == 1
        _drop_connections(postgresql_url)
        journal.record("", _entries(2))
        assert list(_found(journal, 1, 2)) == [_id(1), _id(2)]
        _drop_connections(postgresql_url)
        with journal.database.writing() as connection:
            connection.execute(sa.insert(generations).values(name="run"))


def test_a_connection_that_is_dropped_amid_a_transaction_costs_nothing(postgresql_url: str) -> None:
    tries: list[int] = []
    with Journal(postgresql_url) as journal:

        def write(connection: sa.Connection) -> None:
            connection.execute(sa.insert(generations).values(name=f"try-{len(tries)}"))
            tries.append(1)
            if len(tries) < 3:
                _drop_connections(postgresql_url)
            connection.execute(sa.select(generations)).all()

        journal.database.write(write)
        with journal.database.reading() as connection:
            assert set(connection.execute(sa.select(generations.c.name)).scalars()) == {"", "try-2"}


def test_a_server_that_stays_away_is_named(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_database, "RECONNECT_S", 0.2)
    with Journal(postgresql_url) as journal:
        name = sa.make_url(postgresql_url).database
        with _maintenance(postgresql_url) as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        with pytest.raises(JournalError, match=f"could not be written.*{name}"):
            journal.record("", _entries(1))


def test_writers_that_meet_in_opposite_order_both_finish(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By locking in the same order, not by being chosen as a deadlock's victim and trying again."""
    monkeypatch.setattr(journal_database, "RECONNECT_S", 0)
    together = threading.Barrier(2)

    def record(journal: Journal, numbers: range) -> None:
        for generation in ("a", "b", "c", "d"):
            together.wait(30)
            journal.record(generation, _entries(*numbers))

    with Journal(postgresql_url) as journal, ThreadPoolExecutor(2) as threads:
        for generation in ("a", "b", "c", "d"):
            journal.record(generation, _entries(5_000))
        both = [threads.submit(record, journal, numbers) for numbers in (range(1_000), range(999, -1, -1))]
        for one in both:
            one.result()
        assert journal.count() == 4 + 4 * 1_000


def _maintenance(url: str) -> sa.Connection:
    engine = sa.create_engine(
        sa.make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
    )
    return engine.connect()


def _drop_connections(url: str) -> None:
    name = sa.make_url(url).database
    with _maintenance(url) as connection:
        connection.exec_driver_sql(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        ).all()

"""The journal's database: opened, read and written, with every failure as one error that says what to do."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc

from dspex_pipelines.engine.journal.schema import bring_up_to_date, is_up_to_date, revision
from dspex_pipelines.errors import DspexError, JournalError

BUSY_S = 60.0
"""How long a writer waits for another one."""
RECONNECT_S = 30.0
"""How long a write is tried again with a server that has gone, or that chose it as the victim of a deadlock."""
PAGE_BYTES = 4_096
CHECKPOINT_PAGES = 10_000
CHECKPOINT_BYTES = CHECKPOINT_PAGES * PAGE_BYTES
"""The write-ahead log may grow so large before it is moved into the file, which waits for the disk."""
CACHE_KIB = 64_000
"""At most: the index of a journal of a million outcomes. Fewer pages are touched, and fewer are kept."""
CONNECTIONS = 2
"""One that writes in a thread of its own, one that looks up beside it."""
_READING = "dspex_reading"
_DEADLOCK, _SERIALIZATION = "40P01", "40001"
_DAMAGED = (
    "restore it from a back-up, or save what can be saved with `sqlite3 FILE .recover`, or move it away: "
    "its outcomes are then run again, results that were made of them stay"
)
_SQLITE = {
    sqlite3.SQLITE_BUSY: (
        f"is locked: another process has been writing for {BUSY_S:g} s",
        "find out which (`fuser FILE`), end it, and run again: what was recorded is kept",
    ),
    sqlite3.SQLITE_FULL: (
        "has no room left on its disk",
        "make room (`dspex journal prune`) and run again: what was recorded before is kept",
    ),
    sqlite3.SQLITE_IOERR: (
        "could not be read or written by the operating system",
        "see that its disk is healthy, local and not full, and run again: what was recorded before is kept",
    ),
    sqlite3.SQLITE_READONLY: ("may not be written", "give its file and folder to the user that runs this"),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "give a folder on a local disk that can be written"),
    sqlite3.SQLITE_CORRUPT: ("is damaged", _DAMAGED),
    sqlite3.SQLITE_NOTADB: ("is not an SQLite database, or is damaged", _DAMAGED),
}
Done = TypeVar("Done")


class Database:
    """SQLite in WAL mode, or PostgreSQL, at *url*, which may be the path of an SQLite file.

    Several threads and many processes may use it at once.

    Reads never wait for writers nor keep them waiting, and on SQLite no statement's view outlives it, so no reader
    holds up a checkpoint. Whatever goes wrong is a `JournalError`; a transaction that fails leaves nothing of itself.
    """

    def __init__(self, url: str) -> None:
        # A path is no part of a URL, in which some characters say something else.
        self.url = sa.make_url(url) if "://" in url else sa.URL.create("sqlite", database=url)
        self._engine: sa.Engine | None = None
        self._writer: sqlite3.Connection | None = None
        self._log = f"{self.file}-wal" if self.file else None

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database."""
        return Path(self.url.database or "") if self.url.get_backend_name() == "sqlite" else None

    @property
    def engine(self) -> sa.Engine:
        """The open database; raises `DspexError` where it is not."""
        if self._engine is None:
            raise DspexError("the journal is not open; use it as a context manager")
        return self._engine

    def open(self) -> None:
        """Open it, and make its tables or bring them up to date; raises `JournalError` when that cannot be done."""
        try:
            self._engine = self._made()
            with self._to_read() as connection:
                current = is_up_to_date(connection)
            if not current:
                with self.engine.begin() as connection:
                    bring_up_to_date(connection, self.shown)
        except ModuleNotFoundError as error:
            self.close()
            raise self._without_driver(error) from error
        except (OSError, exc.SQLAlchemyError) as error:
            self.close()
            raise self.explained(error, "cannot be opened") from error
        except BaseException:
            self.close()
            raise

    def layout(self) -> str:
        """Return the revision of its tables, empty where it has none, changing nothing; raises `JournalError`."""
        try:
            engine = self._made()
            try:
                with engine.connect().execution_options(**{_READING: True}) as connection:
                    return revision(connection) or ""
            finally:
                engine.dispose()
        except ModuleNotFoundError as error:
            raise self._without_driver(error) from error
        except (OSError, exc.SQLAlchemyError) as error:
            raise self.explained(error, "cannot be opened") from error

    def _without_driver(self, error: ModuleNotFoundError) -> JournalError:
        fix = "install dspex-pipelines[postgresql]"
        return JournalError(journal=self.shown, reason=f"needs the driver {error.name}", fix=fix)

    def close(self) -> None:
        """Close it; safe to call twice."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @contextmanager
    def reading(self) -> Generator[sa.Connection]:
        """Lend a connection to read by."""
        try:
            with self._to_read() as connection:
                yield connection
        except exc.SQLAlchemyError as error:
            raise self.explained(error, "could not be read") from error

    @contextmanager
    def writing(self) -> Generator[sa.Connection]:
        """Lend a connection in a transaction, which is committed unless the body raises."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except exc.SQLAlchemyError as error:
            raise self.explained(error, "could not be written") from error

    def read(self, work: Callable[[sa.Connection], Done]) -> Done:
        """Return what *work* reads; it is tried again where that may help."""
        return self._tried(self._to_read, work, "could not be read")

    def write(self, work: Callable[[sa.Connection], Done]) -> Done:
        """Return what *work* does in a transaction; tried again where that may help, so twice must be like once."""
        return self._tried(self.engine.begin, work, "could not be written")

    def write_now(self, work: Callable[[sqlite3.Connection], None]) -> bool:
        """Do *work* in a transaction if nothing has to be waited for; return whether it is done. By one thread only.

        There is something to wait for with a server, with another writer, and when a checkpoint is due.
        """
        if self._log is None or not 0 <= self._log_bytes(self._log) < CHECKPOINT_BYTES:
            return False
        try:
            connection = self._writer or self._open_writer()
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                    return False
                raise
            try:
                work(connection)
                connection.execute("COMMIT")
            except BaseException:
                connection.rollback()
                raise
        except sqlite3.Error as error:
            raise self.explained(error, "could not be written") from error
        return True

    @staticmethod
    def _log_bytes(log: str) -> int:
        """Return how large it is; -1 where it cannot be seen."""
        try:
            return os.stat(log).st_size  # noqa: PTH116 - many times a second
        except OSError:
            return -1

    def _open_writer(self) -> sqlite3.Connection:
        writer = sqlite3.connect(str(self.file), timeout=0, check_same_thread=False)
        _prepare(writer, None)
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        self._writer = writer
        return writer

    def _to_read(self) -> AbstractContextManager[sa.Connection]:
        return self.engine.connect().execution_options(**{_READING: True})

    def _tried(
        self,
        lend: Callable[[], AbstractContextManager[sa.Connection]],
        work: Callable[[sa.Connection], Done],
        what: str,
    ) -> Done:
        def once() -> Done:
            with lend() as connection:
                return work(connection)

        try:
            return _repeated(once, self._may_pass, RECONNECT_S)
        except exc.SQLAlchemyError as error:
            raise self.explained(error, what) from error

    def explained(self, error: Exception, what: str) -> JournalError:
        """Return *error* as one that names the journal, the reason and the way out."""
        original = error.orig if isinstance(error, exc.DBAPIError) else error
        code = getattr(original, "sqlite_errorcode", 0) & 0xFF
        said = str(original).splitlines()[0] if str(original) else type(original).__name__
        if code in _SQLITE:
            reason, fix = _SQLITE[code]
            return JournalError(
                journal=self.shown, reason=f"{reason} ({said})", fix=fix.replace("FILE", str(self.file))
            )
        fix = "give a folder on a local disk that can be written, or the URL of a database that answers"
        return JournalError(journal=self.shown, reason=f"{what} ({said})", fix=fix)

    def _may_pass(self, error: Exception) -> bool:
        if self.file is not None or not isinstance(error, exc.DBAPIError):
            return False  # SQLite has waited for the lock already
        if isinstance(error, exc.OperationalError) or error.connection_invalidated:
            return True
        return getattr(error.orig, "sqlstate", "") in (_DEADLOCK, _SERIALIZATION)

    def _made(self) -> sa.Engine:
        if self.file is None:
            # A ping for each use: a server that was restarted meanwhile costs one reconnection and no outcome.
            return sa.create_engine(self.url, pool_size=CONNECTIONS, pool_pre_ping=True)
        if str(self.file) in ("", ".", ":memory:"):
            fix = "several processes write it, so give a path"
            raise JournalError(journal=self.shown, reason="has no file", fix=fix)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(
            self.url, poolclass=sa.QueuePool, pool_size=CONNECTIONS, connect_args={"timeout": BUSY_S}
        )
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        return engine


def _prepare(connection: Any, _: object) -> None:
    # SQLAlchemy's recipe: the driver opens no transactions of its own, `_begin` does.
    connection.isolation_level = None
    cursor = connection.cursor()
    # Of two that make a new file one is told at once that it is locked, however long it would wait: both read it.
    mode = _repeated(lambda: cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0], _is_locked, BUSY_S)
    if mode != "wal":
        raise DspexError("the journal's folder allows no write-ahead log; give a folder on a local disk")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    # So that the log's size says how much of it is not in the file yet.
    cursor.execute("PRAGMA journal_size_limit = 0")
    cursor.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    # A reader begins nothing: each of its statements sees what is committed when it starts, and lets go at its end.
    if not connection.get_execution_options().get(_READING):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _is_locked(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _repeated(work: Callable[[], Done], may_pass: Callable[[Exception], bool], within_s: float) -> Done:
    """Return what *work* does, done again while what it raises *may_pass*, with longer and longer waits between."""
    give_up_at = time.monotonic() + within_s
    wait_s = 0.05
    while True:
        try:
            return work()
        except Exception as error:
            if not may_pass(error) or time.monotonic() + wait_s > give_up_at:
                raise
        time.sleep(random.uniform(wait_s / 2, wait_s))  # noqa: S311 - no secret
        wait_s = min(2.0, wait_s * 2)

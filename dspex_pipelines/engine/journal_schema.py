"""The journal's tables, and bringing a database to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from dspex_pipelines.errors import DspexError

HEAD = "0003"
"""The revision of `migrations` that the tables here are."""
BUSY_MS = 60_000
CHECKPOINT_PAGES = 10_000
_LOCK = 0x64737065
"""Held in PostgreSQL while the tables are brought up to date."""

metadata = sa.MetaData()
# Keys are random, so only their small index is written all over the place, never the wide rows.
_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
generations = sa.Table(
    "generations",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
)
executions = sa.Table(
    "executions",
    metadata,
    sa.Column("id", _number, primary_key=True),
    sa.Column("trial_id", sa.LargeBinary(16), nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("scoring", sa.LargeBinary(16), nullable=False),
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
    sa.Column("history", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("trial_id", "generation", name="one_execution"),
)
scores = sa.Table(
    "scores",
    metadata,
    sa.Column("id", _number, primary_key=True),
    sa.Column("trial_id", sa.LargeBinary(16), nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("scoring", sa.LargeBinary(16), nullable=False),
    sa.Column("status", sa.SmallInteger, nullable=False),
    sa.Column("recorded_at", sa.Float, nullable=False),
    sa.Column("scores", sa.LargeBinary, nullable=False),
    sa.Column("failure", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("trial_id", "generation", "scoring", name="one_scoring"),
)
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run_id", sa.String, primary_key=True),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("trials", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("cost_usd", sa.Float, nullable=False),
    sa.Column("stopped", sa.String, nullable=False),
)


def open_database(url: sa.URL) -> sa.Engine:
    """Return the engine of a database that has these tables, made or brought up to date as needed.

    Raises `DspexError` when it cannot be opened, or was written by a later release.
    """
    shown = url.render_as_string(hide_password=True)
    try:
        if url.get_backend_name() == "sqlite":
            Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
            engine = sa.create_engine(url, poolclass=sa.StaticPool)
            event.listen(engine, "connect", _prepare)
            event.listen(engine, "begin", _begin)
        else:
            engine = sa.create_engine(url, pool_size=1, pool_pre_ping=True)
        with engine.begin() as connection:
            _bring_up_to_date(connection, shown)
    except ModuleNotFoundError as error:
        raise DspexError(
            f"the journal {shown} needs a driver that is not installed ({error.name}); "
            "install dspex-pipelines[postgresql]"
        ) from error
    except (OSError, exc.SQLAlchemyError) as error:
        reason = str(error).splitlines()[0]
        raise DspexError(
            f"the journal {shown} cannot be opened ({reason}); give a folder on a local disk that can be written, "
            "or the URL of a database that answers"
        ) from error
    return engine


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


def _bring_up_to_date(connection: sa.Connection, shown: str) -> None:
    if _revision(connection) == HEAD:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    found = _revision(connection)
    if found == HEAD:
        return
    if found is not None and found > HEAD:
        raise DspexError(
            f"the journal {shown} has layout {found}, this release knows up to {HEAD}; "
            "install the release that wrote it, or move the journal away to start anew"
        )
    # Only now: importing it takes longer than opening a journal.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "dspex_pipelines.engine:migrations")
    if found is None and sa.inspect(connection).has_table("executions"):
        command.stamp(config, "0001")
    command.upgrade(config, "head")


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none()

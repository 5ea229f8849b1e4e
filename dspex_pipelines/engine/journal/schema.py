"""The journal's tables, and bringing a database to them."""

from __future__ import annotations

import sqlalchemy as sa

from dspex_pipelines.errors import DspexError

HEAD = "0004"
"""The revision of `migrations` that the tables here are."""
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
    sa.Column("throttled_s", sa.Float, nullable=False, server_default="0"),
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


def is_up_to_date(connection: sa.Connection) -> bool:
    """Return whether the database has these tables, by a read alone."""
    return revision(connection) == HEAD


def bring_up_to_date(connection: sa.Connection, shown: str) -> None:
    """Make the tables, or the ones of an earlier release these, in the transaction of *connection*.

    Raises `DspexError` when the database was written by a later release; *shown* is what it is called there.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    found = revision(connection)
    if found == HEAD:
        return  # another process was first
    if found is not None and found > HEAD:
        raise DspexError(
            f"the journal {shown} has layout {found}, this release knows up to {HEAD}; "
            "install the release that wrote it, or move the journal away to start anew"
        )
    # Only now: importing it takes longer than opening a journal.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "dspex_pipelines.engine.journal:migrations")
    if found is None and sa.inspect(connection).has_table("executions"):
        command.stamp(config, "0001")
    command.upgrade(config, "head")


def revision(connection: sa.Connection) -> str | None:
    """Return which tables the database has; None where it has none of these."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none()

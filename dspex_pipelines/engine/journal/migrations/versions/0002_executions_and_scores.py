"""Executions by trial and generation; scores of the same outputs by other labels and metrics beside them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_KEPT = (
    "trial_id, status, final, configuration_digest, session_version, attempts, worker, queue_s, run_s, recorded_at, "
    "outputs, scores, trace, usage, failure"
)


def upgrade() -> None:
    """Keep the first final outcome of each trial as generation 0, to be scored again: by what it was is not known."""
    op.rename_table("executions", "executions_0001")
    op.create_table(
        "generations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
    )
    op.execute("INSERT INTO generations (id, name) VALUES (0, '')")
    op.create_table(
        "executions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
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
    op.create_table(
        "scores",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("trial_id", sa.LargeBinary(16), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("scoring", sa.LargeBinary(16), nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("recorded_at", sa.Float, nullable=False),
        sa.Column("scores", sa.LargeBinary, nullable=False),
        sa.Column("failure", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("trial_id", "generation", "scoring", name="one_scoring"),
    )
    nothing = "X''" if op.get_bind().dialect.name == "sqlite" else "''::bytea"
    # Final ones first, older ones first: of each trial the first is kept.
    op.execute(
        f"INSERT INTO executions (generation, scoring, history, {_KEPT}) "  # noqa: S608 - no values
        f"SELECT 0, {nothing}, {nothing}, {_KEPT} FROM executions_0001 WHERE true "
        "ORDER BY final DESC, recorded_at ON CONFLICT DO NOTHING"
    )
    op.drop_table("executions_0001")

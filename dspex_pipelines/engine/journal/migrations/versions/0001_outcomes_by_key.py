"""Outcomes by a digest of trial, generation and scoring, as before the first release."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "executions",
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

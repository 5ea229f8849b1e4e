"""How long each trial waited for leave to call a model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; earlier trials waited for none."""
    op.add_column("executions", sa.Column("throttled_s", sa.Float, nullable=False, server_default="0"))

"""What Alembic runs: the revisions, on the connection and in the transaction that the journal has opened."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
context.run_migrations()

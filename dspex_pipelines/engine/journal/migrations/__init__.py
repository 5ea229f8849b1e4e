"""The journal's layouts, one after another, as Alembic applies them."""

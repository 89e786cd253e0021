"""Alembic's entry: migrate on the connection, and in the transaction, that `apps.arena.store.database.upgrade` gives."""

from __future__ import annotations

from alembic import context

from apps.arena.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()

"""The two statements that SQLite and PostgreSQL spell alike and SQLAlchemy's core does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table

from palate.errors import UserError


def insert(connection: Connection, table: Table) -> Any:
    """Return the dialect's INSERT, which knows ON CONFLICT."""
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    raise UserError(f"The arena runs on SQLite and PostgreSQL, not on {connection.dialect.name}.")


def insert_new(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is taken; return whether it was inserted. Of parallel calls one returns True."""
    statement = insert(connection, table).values(**row).on_conflict_do_nothing()
    return connection.execute(statement.returning(next(iter(table.primary_key)))).first() is not None


def put(connection: Connection, table: Table, row: Mapping[str, Any], key: str) -> None:
    """Insert a row, or replace the one with the same `key`."""
    statement = insert(connection, table).values(**row)
    connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=dict(row)))

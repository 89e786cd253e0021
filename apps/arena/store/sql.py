"""INSERT with ON CONFLICT, which SQLite and PostgreSQL spell alike and SQLAlchemy's core does not.

Statements are built once: building one costs several times as much as running it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import Connection, Table

from palate.errors import UserError


def insert(dialect: str, table: Table) -> Any:
    """Return the dialect's INSERT, which knows ON CONFLICT."""
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    raise UserError(f"The arena runs on SQLite and PostgreSQL, not on {dialect}.")


def insert_new(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is taken; return whether it was inserted. Of parallel calls one returns True."""
    return connection.execute(_new(connection.dialect.name, table), row).first() is not None


def put(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Insert a row, or replace the one with the same primary key."""
    connection.execute(_put(connection.dialect.name, table), row)


@cache
def _new(dialect: str, table: Table) -> Any:
    return insert(dialect, table).on_conflict_do_nothing().returning(next(iter(table.primary_key)))


@cache
def _put(dialect: str, table: Table) -> Any:
    statement, keys = insert(dialect, table), {column.name for column in table.primary_key}
    changed = {column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys}
    return statement.on_conflict_do_update(index_elements=sorted(keys), set_=changed)

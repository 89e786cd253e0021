"""The append-only log of all that happened: votes, withdrawals, reveals, skips, exclusions, imports, exports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from apps.arena.store.schema import events

KINDS = (
    "vote",
    "withdraw",
    "reveal",
    "skip",
    "exclude",
    "include",
    "consent",
    "consent_text",
    "erase",
    "import",
    "retire",
    "export",
    "login",
)


_INSERT = insert(events)


def append(
    connection: Connection,
    kind: str,
    now: int,
    data: Mapping[str, Any] | None = None,
    *,
    voter: str | None = None,
    battle: str | None = None,
) -> None:
    """Add an event within the caller's transaction."""
    assert kind in KINDS, kind
    row = {
        "at": now,
        "kind": kind,
        "voter": voter,
        "battle": battle,
        "data": json.dumps(data or {}, ensure_ascii=False),
    }
    connection.execute(_INSERT, row)


def read(connection: Connection, after: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the events with a number greater than `after`, in order."""
    ordered = select(events).where(events.c.id > after).order_by(events.c.id)
    for row in connection.execute(ordered.execution_options(yield_per=1000)):
        about = {"id": row.id, "at": iso(row.at), "kind": row.kind, "voter": row.voter, "battle": row.battle}
        yield {**about, **json.loads(row.data)}


def iso(millis: int) -> str:
    """Return the moment in ISO 8601, UTC, with milliseconds."""
    return datetime.fromtimestamp(millis / 1000, UTC).isoformat(timespec="milliseconds")

"""The text that voters must agree to before they vote, where the owner has written one."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from sqlalchemy import Connection, delete, select, update

from apps.arena.errors import Refused
from apps.arena.store import events
from apps.arena.store.schema import state, voters
from apps.arena.store.sql import insert_new, put

KEY = "consent"


@dataclass(frozen=True)
class Consent:
    """The text, Markdown, and its version: a hash of it. A new text must be agreed to anew."""

    text: str
    version: str


def current(connection: Connection) -> Consent | None:
    """Return the text, or None where there is none."""
    text = connection.execute(select(state.c.value).where(state.c.key == KEY)).scalar()
    return Consent(text, version_of(text)) if text else None


def version_of(text: str) -> str:
    """Return 32 hex characters."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


def change(connection: Connection, text: str, now: int) -> None:
    """Set the text; an empty one asks for nothing."""
    if text.strip():
        put(connection, state, {"key": KEY, "value": text.strip()})
    else:
        connection.execute(delete(state).where(state.c.key == KEY))
    events.append(connection, "consent_text", now, {"text": text.strip()})


def agree(connection: Connection, voter: str, version: str, now: int) -> None:
    """Record a voter's agreement. Refused for a text that is not the current one."""
    wanted = current(connection)
    if wanted is None or wanted.version != version:
        raise Refused("conflict", "The terms have changed meanwhile. Read them again.")
    insert_new(connection, voters, {"id": voter, "created": now, "consent": None, "owner": False})
    connection.execute(update(voters).where(voters.c.id == voter).values(consent=version))
    events.append(connection, "consent", now, {"version": version}, voter=voter)

"""The owner's side: password, login, what is known of votes and voters, exclusions, retired models.

Exclusions are rows with a reason; lifting one keeps the row and says when. Both are in the log.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any

from sqlalchemy import Connection, case, func, insert, select, update

from apps.arena.errors import Refused
from apps.arena.store import events
from apps.arena.store.catalog import changed
from apps.arena.store.schema import battles, exclusions, models, outputs, prompts, state, voters, votes
from apps.arena.store.sql import put
from apps.arena.voting.limits import MINUTE, Limit, check, take
from palate.errors import UserError, unknown

KEY = "admin"
COST = {"n": 2**15, "r": 8, "p": 1, "maxmem": 2**26}
"""scrypt: 32 MiB and about a tenth of a second for one guess."""
SHORTEST = 10
WHAT = ("voter", "battle", "prompt")
PAGE = 200


def hash_password(password: str) -> str:
    """Return salt and scrypt hash. Raises UserError for a short password."""
    if len(password) < SHORTEST:
        raise UserError(f"The admin password needs at least {SHORTEST} characters; got {len(password)}.")
    salt = secrets.token_bytes(16)
    return f"{salt.hex()}:{_scrypt(password, salt)}"


def matches(password: str, stored: str) -> bool:
    """Whether the password is the one that was hashed."""
    salt, _, digest = stored.partition(":")
    return hmac.compare_digest(_scrypt(password, bytes.fromhex(salt)), digest)


def set_password(connection: Connection, hashed: str) -> None:
    """Store the hash; sessions that began under another password end."""
    put(connection, state, {"key": KEY, "value": hashed})


def stored_hash(connection: Connection) -> str | None:
    """Return the stored hash, or None where no password is set."""
    return connection.execute(select(state.c.value).where(state.c.key == KEY)).scalar()


def login_limits(network: str, most: int) -> list[Limit]:
    """Return what a wrong password counts against: the network, and, more generously, everybody."""
    what = "wrong passwords"
    return [Limit(f"login:{network}", most, 15 * MINUTE, what), Limit("login:*", 20 * most, 15 * MINUTE, what)]


def check_login(connection: Connection, network: str, most: int, now: int) -> None:
    """Refuse a login while too many were wrong."""
    for limit in login_limits(network, most):
        check(connection, limit, now)


def note_login(connection: Connection, network: str, most: int, now: int, right: bool) -> None:
    """Log a login; count it where it was wrong."""
    if not right:
        take(connection, login_limits(network, most), now)
    events.append(connection, "login", now, {"right": right})


def exclude(connection: Connection, what: str, target: str, reason: str, now: int) -> int:
    """Leave a voter's votes, one vote or a prompt out of ratings and exports; return the exclusion's number.

    An excluded prompt is not shown any more, either. An exclusion that stands already is returned as it is.
    """
    if what not in WHAT:
        raise Refused("invalid", unknown("kind of exclusion", what, WHAT))
    column = {"voter": voters.c.id, "battle": votes.c.battle, "prompt": prompts.c.digest}[what]
    if not connection.execute(select(column).where(column == target)).first():
        raise Refused("missing", f"There is no {what} '{target}'.")
    stands = (exclusions.c.what == what) & (exclusions.c.target == target) & exclusions.c.lifted.is_(None)
    number = connection.execute(select(exclusions.c.id).where(stands)).scalar()
    if number is not None:
        return number
    row = {"what": what, "target": target, "reason": reason, "created": now, "lifted": None}
    number = connection.execute(insert(exclusions).returning(exclusions.c.id), row).scalar_one()
    events.append(connection, "exclude", now, {"what": what, "target": target, "reason": reason})
    changed(connection)
    return number


def include(connection: Connection, number: int, now: int) -> None:
    """Lift an exclusion: what it left out counts again."""
    row = connection.execute(select(exclusions).where(exclusions.c.id == number).with_for_update()).one_or_none()
    if row is None:
        raise Refused("missing", f"There is no exclusion {number}.")
    if row.lifted is None:
        connection.execute(update(exclusions).where(exclusions.c.id == number).values(lifted=now))
        events.append(connection, "include", now, {"what": row.what, "target": row.target})
        changed(connection)


def retire(connection: Connection, model: str, retired: bool, now: int) -> None:
    """Show a model no more, or again. Its votes stay."""
    found = connection.execute(
        update(models).where(models.c.name == model).values(retired=now if retired else None)
    ).rowcount
    if not found:
        raise Refused("missing", f"There is no model '{model}'.")
    events.append(connection, "retire", now, {"model": model, "retired": retired})
    changed(connection)


def overview(connection: Connection) -> dict[str, Any]:
    """Return counts of everything, and the models with their outputs."""

    def count(table: Any, *where: Any) -> int:
        return connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one()

    made = select(
        models.c.name, models.c.kind, models.c.added, models.c.retired, func.count(outputs.c.id).label("outputs")
    )
    made = made.outerjoin(outputs, (outputs.c.model == models.c.id) & ~outputs.c.spoilt).group_by(models.c.id)
    return {
        "votes": count(votes),
        "battles": count(battles),
        "skipped": count(battles, battles.c.skipped.is_not(None)),
        "voters": count(voters),
        "prompts": count(prompts),
        "exclusions": count(exclusions, exclusions.c.lifted.is_(None)),
        "models": [
            {**row._asdict(), "added": events.iso(row.added), "retired": row.retired is not None}
            for row in connection.execute(made.order_by(models.c.name))
        ],
    }


def list_votes(connection: Connection, before: int | None = None, voter: str | None = None) -> list[dict[str, Any]]:
    """Return a page of votes, the latest first. before: milliseconds; voter: only theirs."""
    a, b = models.alias("a"), models.alias("b")
    query = (
        select(
            votes.c.battle,
            votes.c.voter,
            votes.c.outcome,
            votes.c.reasons,
            votes.c.created,
            votes.c.revealed,
            battles.c.kind,
            battles.c.known,
            battles.c.better,
            a.c.name.label("model_a"),
            b.c.name.label("model_b"),
            prompts.c.text.label("prompt"),
            prompts.c.digest.label("prompt_id"),
            prompts.c.category,
        )
        .join(battles, battles.c.id == votes.c.battle)
        .join(a, a.c.id == battles.c.model_a)
        .join(b, b.c.id == battles.c.model_b)
        .join(prompts, prompts.c.id == battles.c.prompt)
        .order_by(votes.c.created.desc(), votes.c.battle)
        .limit(PAGE)
    )
    if before is not None:
        query = query.where(votes.c.created < before)
    if voter is not None:
        query = query.where(votes.c.voter == voter)
    return [
        {**row._asdict(), "at": row.created, "created": events.iso(row.created), "revealed": row.revealed is not None}
        for row in connection.execute(query)
    ]


def list_voters(connection: Connection, flagged: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return a page of voters, the busiest first, with checks passed and why their votes are set apart."""
    golds = func.sum(case((battles.c.kind == "gold", 1), else_=0))
    right = func.sum(case(((battles.c.kind == "gold") & (votes.c.outcome == battles.c.better), 1), else_=0))
    query = (
        select(
            voters.c.id.label("voter"),
            voters.c.created,
            voters.c.owner,
            func.count(votes.c.battle).label("votes"),
            func.max(votes.c.created).label("last"),
            golds.label("golds"),
            right.label("golds_right"),
            func.max(battles.c.network).label("network"),
        )
        .outerjoin(votes, votes.c.voter == voters.c.id)
        .outerjoin(battles, battles.c.id == votes.c.battle)
        .group_by(voters.c.id)
        .order_by(func.count(votes.c.battle).desc(), voters.c.id)
        .limit(PAGE)
    )
    out = {
        row.target: row.id
        for row in connection.execute(
            select(exclusions.c.target, exclusions.c.id).where(
                exclusions.c.what == "voter", exclusions.c.lifted.is_(None)
            )
        )
    }
    return [
        {
            **row._asdict(),
            "created": events.iso(row.created),
            "last": events.iso(row.last) if row.last else None,
            "flags": flagged.get(row.voter, []),
            "exclusion": out.get(row.voter),
        }
        for row in connection.execute(query)
    ]


def list_exclusions(connection: Connection) -> list[dict[str, Any]]:
    """Return all exclusions, the latest first, lifted ones included."""
    return [
        {**row._asdict(), "created": events.iso(row.created), "lifted": events.iso(row.lifted) if row.lifted else None}
        for row in connection.execute(select(exclusions).order_by(exclusions.c.id.desc()))
    ]


def _scrypt(password: str, salt: bytes) -> str:
    return hashlib.scrypt(password.encode(), salt=salt, **COST).hex()

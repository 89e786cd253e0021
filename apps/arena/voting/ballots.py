"""What a voter does with a battle: vote, take back, skip, reveal. Each is one transaction, and each may be repeated.

A vote is taken back by deleting its row and logging that; after its reveal, or `reveal_seconds` after it was cast, it
stands. The models' names leave the database only in `reveal`, which finds a vote that is already durable.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, update

from apps.arena.errors import Refused
from apps.arena.store import events
from apps.arena.store.schema import battles, models, outputs, prompts, votes
from apps.arena.store.sql import insert_new
from apps.arena.voting.reasons import check_reasons
from palate.errors import unknown
from palate.records import OUTCOMES


@dataclass(frozen=True)
class Receipt:
    """That a vote is on disk. A repeat of the same vote gets the same receipt."""

    receipt: str
    outcome: str
    created: int


@dataclass(frozen=True)
class Side:
    """One side of a battle, revealed."""

    model: str
    seed: int | None


@dataclass(frozen=True)
class Reveal:
    """Who made what. `kind` says whether the battle was a check."""

    a: Side
    b: Side
    outcome: str
    kind: str
    better: str | None
    """The unspoilt side of a gold battle."""


def vote(connection: Connection, battle: str, voter: str, outcome: str, reasons: Sequence[str], now: int) -> Receipt:
    """Record a vote. Refused where another outcome stands already, or the battle was skipped."""
    if outcome not in OUTCOMES:
        raise Refused("invalid", unknown("vote outcome", str(outcome), OUTCOMES))
    row = _locked(connection, battle, voter)
    chosen, receipt = check_reasons(row.prompt_kind, reasons), secrets.token_hex(12)
    if row.skipped is not None:
        raise Refused("conflict", "This battle was skipped. Ask for a new one.")
    ballot = {
        "battle": battle,
        "voter": voter,
        "outcome": outcome,
        "reasons": json.dumps(chosen),
        "created": now,
        "receipt": receipt,
        "revealed": None,
    }
    if not insert_new(connection, votes, ballot):
        stands = connection.execute(_VOTE, {"battle": battle}).one()
        if stands.outcome != outcome:
            raise Refused("conflict", f"The vote '{stands.outcome}' stands already. Take it back first.")
        return Receipt(stands.receipt, stands.outcome, stands.created)
    events.append(connection, "vote", now, _described(row, outcome, chosen), voter=voter, battle=battle)
    return Receipt(receipt, outcome, now)


def undo(connection: Connection, battle: str, voter: str, now: int, reveal_ms: int) -> None:
    """Take a vote back. Refused after its reveal or its time; where there is no vote, nothing happens."""
    _locked(connection, battle, voter)
    stands = connection.execute(_VOTE, {"battle": battle}).one_or_none()
    if stands is None:
        return
    if stands.revealed is not None or now >= stands.created + reveal_ms:
        raise Refused("conflict", "This vote stands: it has been revealed, or its time to be taken back is over.")
    connection.execute(delete(votes).where(votes.c.battle == battle))
    events.append(connection, "withdraw", now, {"outcome": stands.outcome}, voter=voter, battle=battle)


def skip(connection: Connection, battle: str, voter: str, now: int) -> None:
    """Log that a battle was passed over; it can then not be voted on. Refused where a vote stands."""
    row = _locked(connection, battle, voter)
    if row.skipped is not None:
        return
    if connection.execute(_VOTE, {"battle": battle}).first():
        raise Refused("conflict", "This battle has a vote. Take it back first.")
    connection.execute(update(battles).where(battles.c.id == battle).values(skipped=now))
    events.append(connection, "skip", now, _described(row), voter=voter, battle=battle)


def reveal(connection: Connection, battle: str, voter: str, now: int) -> Reveal:
    """Return who made what, and thereby make the vote final. Refused where there is no vote."""
    row = _locked(connection, battle, voter)
    stands = connection.execute(_VOTE, {"battle": battle}).one_or_none()
    if stands is None:
        raise Refused("conflict", "Names are shown after the vote.")
    if stands.revealed is None:
        connection.execute(update(votes).where(votes.c.battle == battle).values(revealed=now))
        events.append(connection, "reveal", now, voter=voter, battle=battle)
    made = select(outputs.c.id, outputs.c.seed).where(outputs.c.id.in_((row.output_a, row.output_b)))
    seeds = dict(connection.execute(made).tuples().all())
    a, b = Side(row.name_a, seeds[row.output_a]), Side(row.name_b, seeds[row.output_b])
    return Reveal(a, b, stands.outcome, row.kind, row.better)


_A, _B = models.alias("a"), models.alias("b")
_BATTLE = (
    select(
        battles,
        _A.c.name.label("name_a"),
        _B.c.name.label("name_b"),
        prompts.c.digest.label("prompt_digest"),
        prompts.c.kind.label("prompt_kind"),
    )
    .join(_A, _A.c.id == battles.c.model_a)
    .join(_B, _B.c.id == battles.c.model_b)
    .join(prompts, prompts.c.id == battles.c.prompt)
    .where(battles.c.id == bindparam("battle"))
    .with_for_update(of=battles)
)
_VOTE = select(votes).where(votes.c.battle == bindparam("battle"))


def _locked(connection: Connection, battle: str, voter: str) -> Any:
    """Return the battle's row, locked until the transaction ends. Refused where it is not there or not the voter's."""
    row = connection.execute(_BATTLE, {"battle": battle}).one_or_none()
    if row is None:
        raise Refused("missing", "This battle is no longer here.")
    if row.voter != voter:
        raise Refused("forged", "This battle was shown to somebody else. Ask for one of your own.")
    return row


def _described(row: Any, outcome: str | None = None, reasons: Sequence[str] = ()) -> dict[str, Any]:
    """Return the battle as the log keeps it, by names, so that the log can be read alone."""
    said = {} if outcome is None else {"outcome": outcome, "reasons": list(reasons)}
    battle = {
        "prompt": row.prompt_digest,
        "category": row.category,
        "model_a": row.name_a,
        "model_b": row.name_b,
        "shown": row.kind,
        "probability": row.probability,
        "rule": row.rule,
        "known": row.known,
    }
    return {**said, **battle, **{k: getattr(row, k) for k in ("better", "repeats") if getattr(row, k) is not None}}

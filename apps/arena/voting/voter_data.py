"""What the arena knows of one voter: their counts and board, and how to delete it all."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from apps.arena.store import events
from apps.arena.store.schema import battles, exclusions, models, outputs, prompts, voters, votes
from apps.arena.store.schema import events as event_table
from apps.arena.store.sql import insert_new

COUNTED = ("plain", "live")
"""Kinds of battles that count in boards; gold and repeats measure the voter."""


def summary(connection: Connection, voter: str, least: int) -> dict[str, Any]:
    """Return {votes, skipped, revealed_votes, needed, board}; board is None below `least` revealed votes.

    Each line of the board: model, battles, wins, losses, ties, both_bad and score, (wins + ties / 2) / decided or None.
    Only revealed votes are in it, so that it tells nothing about a battle that can still be taken back.
    """
    a, b = models.alias("a"), models.alias("b")
    mine = (
        select(votes.c.outcome, votes.c.revealed, battles.c.kind, a.c.name.label("a"), b.c.name.label("b"))
        .join(battles, battles.c.id == votes.c.battle)
        .join(a, a.c.id == battles.c.model_a)
        .join(b, b.c.id == battles.c.model_b)
        .where(votes.c.voter == voter)
    )
    rows = connection.execute(mine).all()
    skipped = connection.execute(
        select(func.count()).where(battles.c.voter == voter, battles.c.skipped.is_not(None))
    ).scalar()
    shown = [row for row in rows if row.revealed is not None and row.kind in COUNTED]
    return {
        "votes": len(rows),
        "skipped": skipped,
        "revealed_votes": len(shown),
        "needed": max(0, least - len(shown)),
        "board": _board(shown) if len(shown) >= least else None,
    }


def _board(rows: list[Any]) -> list[dict[str, Any]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        words = {"a": ("wins", "losses"), "b": ("losses", "wins")}.get(row.outcome)
        if words is None:
            words = ("ties", "ties") if row.outcome == "tie" else ("both_bad", "both_bad")
        for model, word in zip((row.a, row.b), words, strict=True):
            counts[model][word] += 1
    board = []
    for model, found in counts.items():
        decided = found["wins"] + found["losses"] + found["ties"]
        line: dict[str, Any] = {"model": model, "battles": found.total()}
        line |= {word: found[word] for word in ("wins", "losses", "ties", "both_bad")}
        board.append({**line, "score": (found["wins"] + found["ties"] / 2) / decided if decided else None})
    return sorted(
        board, key=lambda line: (-1 if line["score"] is None else -line["score"], -line["battles"], line["model"])
    )


def erase(connection: Connection, voter: str, now: int) -> tuple[dict[str, Any], list[str]]:
    """Delete a voter's votes, battles, events, exclusions and typed prompts with what was made for them.

    Returns what was deleted, and the ids of pictures that nothing refers to any more. The log keeps one line that says
    how much went, and not whose it was.
    """
    mine = select(battles.c.id).where(battles.c.voter == voter)
    connection.execute(delete(exclusions).where(exclusions.c.what == "voter", exclusions.c.target == voter))
    connection.execute(delete(exclusions).where(exclusions.c.what == "battle", exclusions.c.target.in_(mine)))
    cast = connection.execute(delete(votes).where(votes.c.voter == voter)).rowcount
    connection.execute(delete(event_table).where(event_table.c.voter == voter))
    shown = connection.execute(delete(battles).where(battles.c.voter == voter)).rowcount
    typed = list(connection.scalars(select(prompts.c.id).where(prompts.c.author == voter)))
    pictures = set(connection.scalars(select(prompts.c.question).where(prompts.c.id.in_(typed))))
    pictures |= set(connection.scalars(select(outputs.c.media).where(outputs.c.prompt.in_(typed))))
    connection.execute(delete(outputs).where(outputs.c.prompt.in_(typed)))
    connection.execute(delete(prompts).where(prompts.c.id.in_(typed)))
    connection.execute(delete(voters).where(voters.c.id == voter))
    pictures.discard(None)
    used = set(connection.scalars(select(outputs.c.media).where(outputs.c.media.in_(pictures))))
    used |= set(connection.scalars(select(prompts.c.question).where(prompts.c.question.in_(pictures))))
    deleted = {"votes": cast, "battles": shown, "prompts": len(typed)}
    events.append(connection, "erase", now, deleted)
    return {"ok": True, **deleted}, sorted(pictures - used)


def note_owner(connection: Connection, voter: str, now: int) -> None:
    """Remember that this voter has seen the admin page: their battles are of known identity from now on."""
    insert_new(connection, voters, {"id": voter, "created": now, "consent": None, "owner": False})
    connection.execute(update(voters).where(voters.c.id == voter).values(owner=True))

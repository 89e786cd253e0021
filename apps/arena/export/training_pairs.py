"""Votes -> training pairs, split by prompt, so that what a model was trained on never judges it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, update

from apps.arena.export.log import pseudonym, read_ledger
from apps.arena.packs.media import MediaFolder
from apps.arena.service import Arena
from apps.arena.store import events
from apps.arena.store.catalog import changed
from apps.arena.store.schema import battles, outputs, prompts
from palate.conversations import AnswerPair
from palate.errors import UserError, unknown
from palate.randomness import uniform
from palate.readers import write_answer_pairs, write_pairs
from palate.records import Media, Pair, Vote
from palate.votes import Summary, TiePolicy, votes_to_pairs

KEEPABLE = ("known_identity", "flagged", "repeat")
"""Flags that an owner may choose to ignore. Gold, withdrawn and excluded votes never train."""


@dataclass(frozen=True)
class Gates:
    """Which votes and comparisons become pairs."""

    ties: TiePolicy = "drop"
    min_agreement: float = 0.0
    """Least share of a comparison's decided votes that its most frequent verdict must have, 0 to 1."""
    min_votes: int = 1
    """Least number of decided votes of a comparison."""
    keep: Collection[str] = ()
    """Flags that are ignored, of `KEEPABLE`."""


@dataclass(frozen=True)
class Exported:
    """The pairs of either part, and what became of the votes."""

    train: Sequence[Pair] | Sequence[AnswerPair]
    held_out: Sequence[Pair] | Sequence[AnswerPair]
    summary: Summary
    flagged: dict[str, int]
    """Flag -> votes that it left out; a vote may carry several."""
    prompts: Sequence[int]
    """Ids of the prompts in the training part."""


def is_held_out(group: str, share: float) -> bool:
    """Whether a prompt is kept from training: a function of what it asks, and of nothing else."""
    return uniform(0, group, 0, "arena split") < share


def collect(arena: Arena, kind: str, gates: Gates, held_out: float) -> Exported:
    """Return the pairs of one kind of battle: image or text.

    Questions about one picture go to one part. Votes on the same two outputs are pooled (`palate.votes.votes_to_pairs`);
    both-bad votes say nothing about which is better, and are left out.
    """
    for flag in gates.keep:
        if flag not in KEEPABLE:
            raise UserError(unknown("flag to keep", flag, KEEPABLE))
    if not 0 <= held_out < 1:
        raise UserError(f"The held-out share lies from 0 to below 1, not {held_out}.")
    with arena.engine.connect() as connection:
        asked = {row.digest: row for row in connection.execute(select(prompts).where(prompts.c.kind == kind))}
        sides = _sides(connection, arena.media, kind)
        ledger = read_ledger(connection)
    flagged: dict[str, int] = {}
    votes = []
    for entry in ledger.entries():
        event = entry.event
        if event["prompt"] not in asked or event["battle"] not in sides:
            continue
        against = [flag for flag in entry.flags if flag not in gates.keep]
        for flag in against:
            flagged[flag] = flagged.get(flag, 0) + 1
        if not against:
            a, b = sides[event["battle"]]
            names = {"model_a": event["model_a"], "model_b": event["model_b"]}
            who = pseudonym(arena.tokens, event["voter"])
            votes.append(
                Vote(event["prompt"], a, b, event["outcome"], who, event["battle"], created=event["at"], **names)
            )
    found, summary = votes_to_pairs(
        votes, ties=gates.ties, min_agreement=gates.min_agreement, min_votes=gates.min_votes
    )
    pictures = {name: Media.image(arena.media.path(name)) for name in {row.question for row in asked.values()} if name}
    parts: dict[bool, list[Any]] = {False: [], True: []}
    trained: dict[int, None] = {}
    for pair in found:
        row = asked[pair.prompt]
        apart = is_held_out(row.question or row.text, held_out)
        parts[apart].append(_finished(pair, row, pictures))
        if not apart:
            trained[row.id] = None
    return Exported(parts[False], parts[True], summary, flagged, list(trained))


def write(arena: Arena, exported: Exported, kind: str, out: Path) -> dict[Path, int]:
    """Write the parts and mark the training prompts in the arena. Returns file -> pairs.

    The held-out part is `NAME.held_out.parquet` beside `NAME.parquet`. From now on `palate enter` leaves out what a
    challenger made for the training prompts.
    """
    if out.suffix != ".parquet":
        raise UserError(f"--out must end in .parquet; got {out}.")
    if not exported.train:
        raise UserError(f"No pairs to train on: {exported.summary}")
    writer: Any = write_pairs if kind == "image" else write_answer_pairs
    written = {out: writer(exported.train, out)}
    apart = out.with_suffix(".held_out.parquet")
    if exported.held_out:
        written[apart] = writer(exported.held_out, apart)
    now = arena.clock()

    def mark(connection: Connection) -> None:
        for prompt in exported.prompts:
            connection.execute(update(prompts).where(prompts.c.id == prompt).values(exported=now))
        events.append(connection, "export", now, {"pairs": len(exported.train), "prompts": len(exported.prompts)})
        changed(connection)

    arena.writer.run(mark)
    return written


def _sides(connection: Connection, folder: MediaFolder, kind: str) -> dict[str, tuple[Media, Media]]:
    """Return battle -> its two outputs. One Media for one output, so that each file is read and hashed once."""
    made = {
        row.id: Media.image(folder.path(row.media)) if row.media else Media.of_text(row.text)
        for row in connection.execute(select(outputs))
        if (row.media is not None) == (kind == "image")
    }
    columns = battles.c.id, battles.c.output_a, battles.c.output_b
    return {
        battle: (made[a], made[b]) for battle, a, b in connection.execute(select(*columns)) if a in made and b in made
    }


def _finished(pair: Pair, row: Any, pictures: dict[str, Media]) -> Pair | AnswerPair:
    meta = json.loads(json.dumps({**pair.meta, "category": row.category}))
    if row.kind == "image":
        return replace(pair, prompt=row.text, source="arena", meta=meta)
    images = [pictures[row.question]] if row.question else []
    chosen, rejected = pair.chosen.text or "", pair.rejected.text or ""
    return AnswerPair.ask(row.text, images, chosen, rejected, p_chosen=pair.p_chosen, source="arena", meta=meta)

"""The log on disk: every vote with its flags, every event, and the prompts; from which all numbers can be computed again.

Voters stand in it under keyed hashes, addresses not at all, and prompts that voters typed by their id alone.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, select

from apps.arena.store import events
from apps.arena.store.ledger import Ledger
from apps.arena.store.schema import battles, outputs, prompts
from apps.arena.voting.tokens import Tokens
from palate.errors import UserError

FILES = ("votes.jsonl", "events.jsonl", "prompts.jsonl")
QUIET = ("login",)
"""Events that concern nobody outside."""


def read_ledger(connection: Connection) -> Ledger:
    """Return the whole log, folded."""
    ledger = Ledger()
    for event in events.read(connection):
        ledger.apply(event)
    ledger.settle()
    return ledger


def pseudonym(tokens: Tokens, voter: str) -> str:
    """Return the name of a voter in exports: the same in all exports of one arena, and no way back."""
    return tokens.digest("export", voter)[:16]


def vote_rows(connection: Connection, tokens: Tokens) -> Iterator[dict[str, Any]]:
    """Yield every vote ever cast, with the flags for which it does not count, as `palate board` reads them."""
    measured = _measures(connection)
    for entry in read_ledger(connection).entries():
        event = entry.event
        a, b = measured.get(event["battle"], ({}, {}))
        row = {
            "battle": event["battle"],
            "prompt": event["prompt"],
            "category": event["category"],
            "model_a": event["model_a"],
            "model_b": event["model_b"],
            "outcome": event["outcome"],
            "voter": pseudonym(tokens, event["voter"]),
            "created": event["at"],
            "flags": list(entry.flags),
            "reasons": event["reasons"],
            "shown": event["shown"],
            "probability": event["probability"],
            "rule": event["rule"],
        }
        yield {**row, **{f"a/{k}": v for k, v in a.items()}, **{f"b/{k}": v for k, v in b.items()}}


def event_rows(connection: Connection, tokens: Tokens) -> Iterator[dict[str, Any]]:
    """Yield every event, voters under their pseudonyms."""
    for event in events.read(connection):
        if event["kind"] in QUIET:
            continue
        if event["voter"] is not None:
            event["voter"] = pseudonym(tokens, event["voter"])
        if event.get("what") == "voter":
            event["target"] = pseudonym(tokens, event["target"])
        yield event


def prompt_rows(connection: Connection) -> Iterator[dict[str, Any]]:
    """Yield the prompts by the ids that votes name them by."""
    for row in connection.execute(select(prompts).where(prompts.c.author.is_(None)).order_by(prompts.c.id)):
        yield {"prompt": row.digest, "kind": row.kind, "category": row.category, "text": row.text}


def write_log(engine: Engine, tokens: Tokens, target: Path) -> Path:
    """Write the log to a folder, or to a .zip; each file appears whole. Returns `target`."""
    try:
        if target.suffix == ".zip":
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(target, log_zip(engine, tokens))
        else:
            target.mkdir(parents=True, exist_ok=True)
            for name, content in _contents(engine, tokens):
                _replace(target / name, content)
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error.strerror or error}.") from None
    return target


def log_zip(engine: Engine, tokens: Tokens) -> bytes:
    """Return the log as a zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _contents(engine, tokens):
            archive.writestr(name, content)
    return buffer.getvalue()


def _contents(engine: Engine, tokens: Tokens) -> Iterator[tuple[str, bytes]]:
    with engine.connect() as connection:  # one snapshot for all three
        for name, rows in zip(
            FILES,
            (vote_rows(connection, tokens), event_rows(connection, tokens), prompt_rows(connection)),
            strict=True,
        ):
            yield name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _measures(connection: Connection) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    a, b = outputs.alias("a"), outputs.alias("b")
    query = (
        select(battles.c.id, a.c.measures, b.c.measures)
        .join(a, a.c.id == battles.c.output_a)
        .join(b, b.c.id == battles.c.output_b)
        .where(battles.c.skipped.is_(None))
    )
    known: dict[str, dict[str, float]] = {}

    def parsed(text: str) -> dict[str, float]:
        if text not in known:
            known[text] = json.loads(text)
        return known[text]

    return {battle: (parsed(first), parsed(second)) for battle, first, second in connection.execute(query)}


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.partial")
    draft.write_bytes(content)
    draft.replace(path)

"""Packs into the database: pictures sanitised, duplicates known by content, gold battles made, resumable at any point."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

from sqlalchemy import Connection, insert, select
from tqdm.auto import tqdm

from apps.arena.packs import measures
from apps.arena.packs.format import Pack, PackItem
from apps.arena.packs.gold import spoil_image, spoil_text
from apps.arena.packs.media import MediaFolder, Size
from apps.arena.store import events
from apps.arena.store.catalog import changed
from apps.arena.store.schema import media, models, outputs, prompts, state
from apps.arena.store.sql import insert_new
from apps.arena.store.writer import Writer
from palate.decoding import decode
from palate.errors import UserError

GOLDS = 40
"""Gold battles that one pack gives at most."""
BATCH = 32
"""Items in one transaction."""


@dataclass(frozen=True)
class NewOutput:
    """An output ready to be stored: a picture that lies in the media folder, or a text."""

    model: str
    seed: int | None
    media: str | None
    size: Size | None
    text: str | None
    measures: dict[str, float]
    spoilt: bool = False

    @property
    def digest(self) -> str:
        """Content id."""
        return self.media or text_id(self.text or "")


@dataclass(frozen=True)
class NewItem:
    """A prompt with its outputs, ready to be stored."""

    prompt: str
    kind: str
    category: str
    question: tuple[str, Size] | None
    outputs: tuple[NewOutput, ...]
    author: str | None = None

    @property
    def digest(self) -> str:
        """Content id of kind, prompt and question; a voter's own prompt is theirs alone."""
        return prompt_id(self.kind, self.prompt, self.question[0] if self.question else "", self.author or "")


def text_id(text: str) -> str:
    """Return the content id of a text, 32 hex characters."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


def prompt_id(kind: str, text: str, question: str = "", author: str = "") -> str:
    """Return the content id of a prompt, 32 hex characters. question: id of the picture that it asks about."""
    return text_id("\x1f".join((kind, text, question, author)))


def import_pack(writer: Writer, folder: MediaFolder, pack: Pack, now: int) -> int:
    """Import what is new in a pack and return how many outputs that was; 0 at once for a pack that is known whole."""
    done = f"pack:{pack.digest}"
    if writer.run(lambda connection: connection.scalar(select(state.c.value).where(state.c.key == done))):
        return 0
    count = 0
    for batch in _batches(_prepare(pack, folder)):
        count += writer.run(partial(add_items, items=batch, now=now))

    def finish(connection: Connection) -> None:
        insert_new(connection, state, {"key": done, "value": str(now)})
        said = {"pack": pack.title, "models": list(pack.models), "items": len(pack.items), "outputs": count}
        events.append(connection, "import", now, said)

    writer.run(finish)
    return count


def add_items(connection: Connection, items: Sequence[NewItem], now: int, *, announce: bool = True) -> int:
    """Store prompts and outputs that are new; return how many outputs were, spoilt copies apart.

    announce: tell every worker to read the catalogue again.
    """
    count = 0
    for item in items:
        for name, size in [item.question] if item.question else []:
            insert_new(connection, media, {"id": name, "width": size[0], "height": size[1]})
        row = {
            "digest": item.digest,
            "kind": item.kind,
            "text": item.prompt,
            "category": item.category,
            "question": item.question[0] if item.question else None,
            "author": item.author,
            "exported": None,
        }
        insert_new(connection, prompts, row)
        prompt = connection.execute(select(prompts.c.id).where(prompts.c.digest == item.digest)).scalar_one()
        new = [output for output in item.outputs if add_output(connection, prompt, output, now) is not None]
        count += sum(not output.spoilt for output in new)
    if announce:
        changed(connection)
    return count


def add_output(connection: Connection, prompt: int, output: NewOutput, now: int) -> int | None:
    """Store an output and return its id, or None where it is known."""
    kind = "text" if output.media is None else "image"
    model = model_id(connection, output.model, kind, now)
    if output.media and output.size:
        row = {"id": output.media, "width": output.size[0], "height": output.size[1]}
        insert_new(connection, media, row)
    here = (outputs.c.prompt == prompt) & (outputs.c.model == model) & (outputs.c.digest == output.digest)
    if connection.execute(select(outputs.c.id).where(here, outputs.c.spoilt == output.spoilt)).first():
        return None
    row = {
        "prompt": prompt,
        "model": model,
        "digest": output.digest,
        "spoilt": output.spoilt,
        "seed": output.seed,
        "media": output.media,
        "text": output.text,
        "measures": json.dumps(output.measures),
    }
    return connection.execute(insert(outputs).returning(outputs.c.id), row).scalar_one()


def model_id(connection: Connection, name: str, kind: str, now: int) -> int:
    """Return a model's id, made where the name is new. Raises UserError where it makes the other kind of output."""
    insert_new(connection, models, {"name": name, "kind": kind, "added": now, "retired": None})
    row = connection.execute(select(models).where(models.c.name == name)).one()
    if row.kind != kind:
        raise UserError(
            f"The model '{name}' makes outputs of the kind {row.kind} here, not {kind}. Give it another name."
        )
    return row.id


def prepare_item(pack: Pack, item: PackItem, folder: MediaFolder, spoil: bool = False) -> NewItem:
    """Sanitise an item's pictures into the media folder. `spoil` adds a spoilt copy of its first output."""
    question = None
    if item.question:
        question = folder.add(decode(pack.read(item.question), item.question))
    made = []
    for output in item.outputs:
        if output.file is not None:
            picture = decode(pack.read(output.file), output.file)
            name, size = folder.add(picture)
            made.append(NewOutput(output.model, output.seed, name, size, None, measures.of_image(picture)))
        else:
            text = output.text or ""
            made.append(NewOutput(output.model, output.seed, None, None, text, measures.of_text(text)))
    if spoil:
        made += _spoilt(made[0], folder)
    return NewItem(item.prompt, item.kind, item.category, question, tuple(made))


def _spoilt(output: NewOutput, folder: MediaFolder) -> list[NewOutput]:
    if output.media is not None:
        name, size = folder.add(spoil_image(folder.open(output.media), output.media))
        if name == output.media:  # a picture of one colour
            return []
        return [NewOutput(output.model, output.seed, name, size, None, {}, spoilt=True)]
    text = spoil_text(output.text or "", output.digest)
    return [] if text is None else [NewOutput(output.model, output.seed, None, None, text, {}, spoilt=True)]


def _prepare(pack: Pack, folder: MediaFolder) -> Iterator[NewItem]:
    every = max(1, len(pack.items) // GOLDS)
    bar = tqdm(pack.items, desc=f"import {pack.title}", unit="prompt", disable=None)
    for number, item in enumerate(bar):
        yield prepare_item(pack, item, folder, spoil=number % every == 0)


def _batches(items: Iterator[NewItem]) -> Iterator[list[NewItem]]:
    batch: list[NewItem] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch

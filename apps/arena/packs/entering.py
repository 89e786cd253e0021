"""A challenger's outputs into an arena: to prompts that others have answered, and that did not train it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select
from tqdm.auto import tqdm

from apps.arena.packs import measures
from apps.arena.packs.format import check_name
from apps.arena.packs.importing import NewOutput, add_output, prompt_id
from apps.arena.packs.media import pixel_id
from apps.arena.packs.sources import Made
from apps.arena.service import Arena
from apps.arena.store import events
from apps.arena.store.catalog import changed
from apps.arena.store.schema import prompts
from palate.decoding import decode
from palate.errors import UserError


@dataclass(frozen=True)
class Entered:
    """What became of a challenger's outputs."""

    new: int
    prompts: int
    trained: int
    unknown: int


def open_prompts(arena: Arena, kind: str, trained_elsewhere: bool = False) -> list[str]:
    """Return the texts of the prompts that may judge a challenger: all that voters did not type, training ones apart."""
    query = select(prompts.c.text).where(prompts.c.kind == kind, prompts.c.author.is_(None)).order_by(prompts.c.id)
    if not trained_elsewhere:
        query = query.where(prompts.c.exported.is_(None))
    with arena.engine.connect() as connection:
        found = list(connection.scalars(query))
    if not found:
        raise UserError(
            "The arena has no prompt left that did not go into training pairs. Import a pack of new prompts."
        )
    return found


def enter(arena: Arena, name: str, made: Sequence[Made], *, trained_elsewhere: bool = False) -> Entered:
    """Store the outputs under the challenger's name; outputs that are there already are skipped.

    trained_elsewhere: outputs to prompts that were exported for training may enter, too.
    """
    name, now = check_name(name), arena.clock()
    with arena.engine.connect() as connection:
        known = {row.digest: row for row in connection.execute(select(prompts).where(prompts.c.author.is_(None)))}
    ready: list[tuple[int, NewOutput]] = []
    trained = unknown = 0
    for output in tqdm(made, desc=f"enter {name}", unit="output", disable=None):
        kind = "text" if output.picture is None else "image"
        question = (
            "" if output.question is None else pixel_id(decode(output.question.read_bytes(), str(output.question)))
        )
        row = known.get(prompt_id(kind, output.prompt, question))
        if row is None:
            unknown += 1
        elif row.exported is not None and not trained_elsewhere:
            trained += 1
        else:
            ready.append((row.id, _stored(arena, name, output)))
    if not ready:
        raise UserError(
            f"None of the {len(made)} outputs can enter: {trained} are to prompts that went into training pairs, {unknown} "
            "to prompts that the arena does not have. `palate enter --model` draws the prompts that are open."
        )

    def job(connection: Connection) -> int:
        count = sum(add_output(connection, prompt, output, now) is not None for prompt, output in ready)
        events.append(connection, "import", now, {"challenger": name, "outputs": count})
        changed(connection)
        return count

    return Entered(arena.writer.run(job), len({prompt for prompt, _ in ready}), trained, unknown)


def _stored(arena: Arena, name: str, output: Made) -> NewOutput:
    if output.picture is None:
        text = output.text or ""
        return NewOutput(name, output.seed, None, None, text, measures.of_text(text))
    picture = decode(output.picture.read_bytes(), str(output.picture))
    media, size = arena.media.add(picture)
    return NewOutput(name, output.seed, media, size, None, measures.of_image(picture))

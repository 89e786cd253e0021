"""What can be shown: models, prompts and outputs, read from the database into memory and read again when they change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import Connection, select

from apps.arena.store.schema import exclusions, media, models, outputs, prompts, state
from apps.arena.store.sql import put

VERSION = "catalog"


@dataclass(frozen=True)
class Output:
    """One output. An image has `media` and its size in pixels, an answer `text`."""

    id: int
    prompt: int
    model: int
    media: str | None
    size: tuple[int, int] | None
    text: str | None


@dataclass(frozen=True)
class Prompt:
    """A prompt, or a question with its picture."""

    id: int
    kind: str
    text: str
    category: str
    question: str | None


@dataclass(frozen=True)
class Catalog:
    """A snapshot. Retired models, excluded prompts and prompts that voters typed are not in it."""

    version: str = ""
    names: tuple[str, ...] = ()
    """Models that can be shown, sorted."""
    ids: tuple[int, ...] = ()
    """Their ids, in the same order."""
    prompts: dict[int, Prompt] = field(default_factory=dict)
    outputs: dict[int, Output] = field(default_factory=dict)
    by_prompt: dict[int, dict[int, tuple[Output, ...]]] = field(default_factory=dict)
    """Prompt -> model -> its outputs."""
    golds: tuple[tuple[Output, Output], ...] = ()
    """(whole, spoilt) outputs of one model."""
    categories: tuple[str, ...] = ()
    naming: re.Pattern[str] = field(default_factory=lambda: naming(()))
    """Finds the name of a model in an answer."""
    _shared: dict[str, dict[tuple[int, int], tuple[int, ...]]] = field(default_factory=dict)

    def shared(self, category: str | None) -> dict[tuple[int, int], tuple[int, ...]]:
        """Return (i, j), i < j, positions in `names` -> prompts of the category that both have outputs for."""
        key = category or ""
        if key not in self._shared:
            place = {model: k for k, model in enumerate(self.ids)}
            found: dict[tuple[int, int], list[int]] = {}
            for prompt, by_model in self.by_prompt.items():
                if category and self.prompts[prompt].category != category:
                    continue
                there = sorted(place[model] for model in by_model)
                for n, i in enumerate(there):
                    for j in there[n + 1 :]:
                        found.setdefault((i, j), []).append(prompt)
            self._shared[key] = {pair: tuple(those) for pair, those in found.items()}
        return self._shared[key]

    def mask(self, pairs: set[tuple[int, int]]) -> np.ndarray:
        """Return the pairs as a symmetric (m, m) bool matrix."""
        allowed = np.zeros((len(self.names), len(self.names)), dtype=bool)
        for i, j in pairs:
            allowed[i, j] = allowed[j, i] = True
        return allowed


def naming(names: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the names as words of their own."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names)) or '(?!)'})(?!\w)", re.IGNORECASE)


def version(connection: Connection) -> str:
    """Return a text that changes whenever the catalogue does."""
    return connection.execute(select(state.c.value).where(state.c.key == VERSION)).scalar() or "0"


def changed(connection: Connection) -> None:
    """Note that the catalogue changed, so that every worker reads it again."""
    put(connection, state, {"key": VERSION, "value": str(int(version(connection)) + 1)})


def load(connection: Connection) -> Catalog:
    """Read the catalogue."""
    number = version(connection)
    live = connection.execute(select(models).where(models.c.retired.is_(None)).order_by(models.c.name)).all()
    there = {row.id for row in live}
    stands = (exclusions.c.what == "prompt") & exclusions.c.lifted.is_(None)
    out = set(connection.scalars(select(exclusions.c.target).where(stands)))
    asked = {
        row.id: Prompt(row.id, row.kind, row.text, row.category, row.question)
        for row in connection.execute(select(prompts).where(prompts.c.author.is_(None)).order_by(prompts.c.id))
        if row.digest not in out
    }
    by_prompt: dict[int, dict[int, tuple[Output, ...]]] = {}
    found: dict[int, Output] = {}
    spoilt: list[Output] = []
    columns = (outputs, media.c.width, media.c.height)
    for row in connection.execute(select(*columns).outerjoin(media).order_by(outputs.c.id)):
        if row.model not in there or row.prompt not in asked:
            continue
        size = (row.width, row.height) if row.media else None
        output = found[row.id] = Output(row.id, row.prompt, row.model, row.media, size, row.text)
        if row.spoilt:
            spoilt.append(output)
        else:
            sides = by_prompt.setdefault(row.prompt, {})
            sides[row.model] = (*sides.get(row.model, ()), output)
    golds = tuple(
        (by_prompt[bad.prompt][bad.model][0], bad) for bad in spoilt if bad.model in by_prompt.get(bad.prompt, {})
    )
    shown = {prompt for prompt, sides in by_prompt.items() if len(sides) > 1}
    return Catalog(
        version=number,
        names=tuple(row.name for row in live),
        ids=tuple(row.id for row in live),
        prompts=asked,
        outputs=found,
        naming=naming([row.name for row in live]),
        by_prompt=by_prompt,
        golds=golds,
        categories=tuple(sorted({asked[prompt].category for prompt in shown})),
    )

"""From a draft of a row, its texts without images, to the `Reader` of a format of conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from palate.conversations import AnswerPair, Exchange, Message
from palate.errors import UserError
from palate.readers.reader import Reader, Rows, Unreadable, Verdict, image, judge_labels, reason_of
from palate.readers.turns import placed
from palate.records import Media

if TYPE_CHECKING:
    from palate.readers.columns import Column

Row = Mapping[str, Any]
Talk = TypeVar("Talk", bound=AnswerPair | Exchange)
_SOME = Media(path="any image")


class Draft(NamedTuple):
    """What a row says, before its images are there."""

    prompt: tuple[Message, ...]
    """Places stand where the row marks them; none marked means before the first question."""
    fields: Mapping[str, Any]
    """The other fields of the record."""


def pair_reader(
    name: str,
    draft: Callable[[Row], Draft],
    *,
    prompt: str,
    needs: tuple[str, ...],
    images: tuple[str, ...] = ("image",),
    cheap: tuple[str, ...] = (),
    unfold: Callable[[Row], Sequence[Row]] | None = None,
    nothing: str = "",
    always: frozenset[str] = frozenset(),
) -> Reader[AnswerPair]:
    """Return the reader that makes pairs of the drafts of its rows.

    images: columns of images, one or a list each, in the order of their places. cheap: optional columns of text.
    nothing: why a row unfolds into no pair at all.
    """

    def build(row: Row, p_first: float, rows: Rows) -> AnswerPair:
        said = draft(row)
        pictures = _pictures(images, row, rows)
        others = _pictures(("rejected_images",), row, rows) if row.get("rejected_images") is not None else None
        prompt = placed(said.prompt, len(pictures))
        return AnswerPair(prompt, pictures, rejected_images=others, p_chosen=p_first, **said.fields)

    texts = tuple(dict.fromkeys((*(column for column in needs if column not in images), *cheap)))
    return Reader(
        name=name,
        prompt=prompt,
        needs=needs,
        cheap=texts,
        also=(*images, "rejected_images"),
        judge=judge_of(AnswerPair, draft, unfold, nothing),
        build=build,
        first_is_chosen=True,
        unfold=unfold,
        images=images,
        always=always,
        pictures=pictures_of_pair,
    )


def exchange_reader(
    name: str,
    draft: Callable[[Row], Draft],
    *,
    prompt: str,
    needs: tuple[str, ...],
    cheap: tuple[str, ...],
    unfold: Callable[[Row], Sequence[Row]],
    nothing: str,
) -> Reader[Exchange]:
    """Return the reader that makes exchanges of the drafts of its rows, their images in the column image."""

    def build(row: Row, p_first: float, rows: Rows) -> Exchange:
        said = draft(row)
        pictures = _pictures(("image",), row, rows)
        return Exchange(placed(said.prompt, len(pictures)), pictures, **said.fields)

    return Reader(
        name=name,
        prompt=prompt,
        needs=needs,
        cheap=(*needs, *cheap),
        also=("image",),
        judge=judge_of(Exchange, draft, unfold, nothing),
        build=build,
        unfold=unfold,
        images=("image",),
        noun="exchange",
        pictures=pictures_of_exchange,
    )


def judge_of(
    record: Callable[..., Talk],
    draft: Callable[[Row], Draft],
    unfold: Callable[[Row], Sequence[Row]] | None,
    nothing: str,
) -> Callable[[Mapping[str, Column]], Verdict]:
    """Return the judge that drafts every row and makes its record with stand-ins for the images."""

    def judge(columns: Mapping[str, Column]) -> Verdict:
        table = {name: c if isinstance(c, list) else c.to_pylist() for name, c in columns.items()}
        rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
        verdict = Verdict(p_first=np.ones(len(rows)), counts=np.ones(len(rows), dtype=np.int64))
        assert verdict.counts is not None
        empty = np.zeros(len(rows), dtype=bool)
        for number, row in enumerate(rows):
            try:
                parts = [row] if unfold is None else unfold(row)
                for part in parts:
                    said = draft(part)
                    record(said.prompt, (_SOME,) * sum(m.places for m in said.prompt), **said.fields)
            except UserError as error:
                verdict.bad[number] = reason_of(error)
                continue
            verdict.counts[number] = len(parts)
            empty[number] = not parts
        if empty.any():
            verdict.unusable[nothing] = empty
        judge_labels(verdict, columns)
        return verdict

    return judge


def pictures_of_pair(pair: AnswerPair) -> Iterable[tuple[str, Media]]:
    yield from pictures_of_exchange(pair)
    for number, media in enumerate(pair.rejected_images or ()):
        yield f"rejected image {number}", media


def pictures_of_exchange(exchange: AnswerPair | Exchange) -> Iterable[tuple[str, Media]]:
    for number, media in enumerate(exchange.images):
        yield f"image {number}" if len(exchange.images) > 1 else "image", media


def text(name: str, value: Any) -> str:
    """Return a text of a row; Unreadable if it is none."""
    if not isinstance(value, str) or not value.strip():
        raise Unreadable(f"{name} is empty or not text", "Give it a text, or leave the row out.")
    return value


def provenance(row: Row, names: Iterable[str]) -> dict[str, Any]:
    """Return the named columns that a row has, as JSON can hold them."""
    kept = {name: row.get(name) for name in names}
    return {name: v if isinstance(v, (str, int, bool)) else str(v) for name, v in kept.items() if v is not None}


def _pictures(names: tuple[str, ...], row: Row, rows: Rows) -> tuple[Media, ...]:
    pictures = []
    for name in names:
        value = row.get(name)
        for one in value if isinstance(value, (list, tuple)) else [] if value is None else [value]:
            pictures.append(image(name, one, rows))
    return tuple(pictures)

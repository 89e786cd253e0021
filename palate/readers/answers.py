"""Readers of conversations with images: preference data -> `AnswerPair`, instruction data -> `Exchange`.

    pairs = open_answer_pairs("povid_preference_data.json", image_root="/data/coco")
    stream = stream_answer_pairs("openbmb/RLAIF-V-Dataset")
    known_good = open_exchanges("llava_instruct_150k.json", image_root="/data/coco/train2017")

A format is told by its columns, as in `palate.readers.open_pairs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from palate.conversations import AnswerPair, Exchange
from palate.errors import UserError
from palate.readers import bpo, llava, povid, question_answer, rlaif_v, rlhf_v, trl_vision
from palate.readers.choosing import check_options, choose
from palate.readers.image_columns import image_keys
from palate.readers.opening import open_stream, open_table
from palate.readers.reader import OnBadRow, Reader, Rows, Ties
from palate.readers.reading import RecordDataset, RecordStream

Talk = TypeVar("Talk", bound=AnswerPair | Exchange)

ANSWER_READERS: dict[str, Reader[AnswerPair]] = {
    "canonical": trl_vision.READER,
    "povid": povid.READER,
    "bpo": bpo.READER,
    "rlaif_v": rlaif_v.READER,
    "rlhf_v": rlhf_v.READER,
}


class AnswerDataset(RecordDataset[Talk]):
    """The usable conversations of a table, by number. Made by `open_answer_pairs` and `open_exchanges`."""

    def groups(self) -> list[str]:
        """Return a key of each record, equal where records share their images, or a prompt where they have none.

        Images are not read: a named file is known by its name, an embedded one by its length and edges.
        """
        images = [name for name in self._reader.images if name in self._source.columns]
        keys = image_keys(self._source.table(images))
        prompts = _listed(self._source.table([self._reader.prompt])[self._reader.prompt])
        return [
            keys[row] if keys and keys[row] else f"prompt {json.dumps(prompts[row], default=str)}"
            for row in self._rows.tolist()
        ]

    def contents(self) -> list[str]:
        """Return what each record says, without its images: equal texts for equal rows, for a hash of the data."""
        names = [name for name in self._reader.cheap if name in self._source.columns]
        table = {name: _listed(column) for name, column in self._source.table(names).items()}
        return [
            json.dumps([{name: table[name][row] for name in names}, part], default=str, sort_keys=True)
            for row, part in zip(self._rows.tolist(), self._parts.tolist(), strict=True)
        ]


def open_answer_pairs(
    path: str | Path,
    *,
    format: str = "auto",
    image_root: str | Path | None = None,
    split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
    ties: Ties = "soft",
    on_bad_row: OnBadRow = "error",
) -> AnswerDataset[AnswerPair]:
    """Return the pairs of answers at `path`, by number.

    path: as in `palate.readers.open_pairs`, or a .json (one array) or .jsonl file.
    format: a name of ANSWER_READERS, or "auto" to tell it by the columns.
    image_root: folder that the names of images start from; None is the folder of the file. Missing files are counted
        before anything else.
    limit, ties, on_bad_row: as in `open_pairs`.

    Raises UserError for a path, format, split or option that cannot be, and where no row is usable.
    """
    check_options(format, ANSWER_READERS, ties, on_bad_row, limit)
    source = open_table(str(path), split, revision)
    source.rows = _rooted(source.rows, image_root)
    reader = choose(format, source.columns, ANSWER_READERS, str(path))
    return _usable(AnswerDataset(source, reader, ties=ties, on_bad_row=on_bad_row, limit=limit))


def stream_answer_pairs(
    path: str | Path,
    *,
    format: str = "auto",
    image_root: str | Path | None = None,
    split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
    ties: Ties = "soft",
    on_bad_row: OnBadRow = "error",
    start: int = 0,
) -> RecordStream[AnswerPair]:
    """Return the pairs of answers at `path` in order, from row `start` on; the rest as in `open_answer_pairs`."""
    check_options(format, ANSWER_READERS, ties, on_bad_row, limit)
    source = open_stream(str(path), split, revision)
    source.rows = _rooted(source.rows, image_root)
    reader = choose(format, source.columns, ANSWER_READERS, str(path))
    return RecordStream(source, reader, ties=ties, on_bad_row=on_bad_row, limit=limit, start=start)


def open_exchanges(
    path: str | Path,
    *,
    format: str = "auto",
    image_root: str | Path | None = None,
    split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "error",
) -> AnswerDataset[Exchange]:
    """Return prompts with one answer each, by number: of instruction data (llava), or the chosen side of pairs.

    A conversation of several turns gives one exchange for each answer in it. Arguments as in `open_answer_pairs`.
    """
    check_options(format, EXCHANGE_READERS, "soft", on_bad_row, limit)
    source = open_table(str(path), split, revision)
    source.rows = _rooted(source.rows, image_root)
    reader = choose(format, source.columns, EXCHANGE_READERS, str(path))
    return _usable(AnswerDataset(source, reader, ties="soft", on_bad_row=on_bad_row, limit=limit))


def _chosen_side(reader: Reader[AnswerPair]) -> Reader[Exchange]:
    def build(row: Mapping[str, Any], p_first: float, rows: Rows) -> Exchange:
        return reader.build(row, p_first, rows).exchange

    side: Any = reader  # `replace` cannot say that another build makes another Reader
    return replace(side, build=build, noun="exchange", pictures=llava.READER.pictures)


EXCHANGE_READERS: dict[str, Reader[Exchange]] = {
    "llava": llava.READER,
    "question_answer": question_answer.READER,
    **{name: _chosen_side(reader) for name, reader in ANSWER_READERS.items()},
}


def _rooted(rows: Rows, image_root: str | Path | None) -> Rows:
    if image_root is None:
        return rows
    folder = Path(image_root).expanduser()
    if not folder.is_dir():
        raise UserError(f"image_root {str(image_root)!r} is not a folder. Name the folder that image names start from.")
    return Rows(root=folder, links=True)


def _usable(dataset: AnswerDataset[Talk]) -> AnswerDataset[Talk]:
    if not len(dataset):
        raise UserError(f"There is no usable row. {dataset.summary()}")
    return dataset


def _listed(column: Any) -> list[Any]:
    return column if isinstance(column, list) else column.to_pylist()

"""Readers: preference data as people keep it -> `palate.records.Pair`.

    pairs = open_pairs("votes.parquet")                                   # by number
    stream = open_pairs("yuvalkirstain/pickapic_v2", streaming=True)      # in order, nothing stored

A format is told by its columns, whatever holds them: parquet, a saved dataset, a hub dataset or a metadata.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, overload

from palate.errors import UserError
from palate.readers import canonical, metadata_jsonl, pickapic
from palate.readers.choosing import check_options, choose, sniffed
from palate.readers.pairs import PairDataset, PairStream, Position
from palate.readers.reader import BadRow, OnBadRow, Reader, Ties
from palate.readers.writing import write_answer_pairs, write_pairs
from palate.records import Pair

__all__ = [
    "READERS",
    "BadRow",
    "PairDataset",
    "PairStream",
    "Position",
    "Reader",
    "open_pairs",
    "sniff",
    "write_answer_pairs",
    "write_pairs",
]

READERS: dict[str, Reader[Pair]] = {
    "canonical": canonical.READER,
    "metadata_jsonl": metadata_jsonl.READER,
    "pickapic": pickapic.READER,
}


def sniff(columns: Iterable[str], name: str = "The data") -> str:
    """Return the name of the one format of READERS whose columns are all there; UserError if there is none."""
    return sniffed(columns, READERS, name).name


@overload
def open_pairs(
    path: str | Path,
    *,
    format: str = "auto",
    split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
    streaming: Literal[False] = False,
    ties: Ties = "soft",
    on_bad_row: OnBadRow = "error",
    start: int = 0,
) -> PairDataset: ...
@overload
def open_pairs(
    path: str | Path,
    *,
    format: str = "auto",
    split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
    streaming: Literal[True],
    ties: Ties = "soft",
    on_bad_row: OnBadRow = "error",
    start: int = 0,
) -> PairStream: ...
@overload
def open_pairs(
    path: str | Path,
    *,
    format: str = "auto",
    split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
    streaming: bool,
    ties: Ties = "soft",
    on_bad_row: OnBadRow = "error",
    start: int = 0,
) -> PairDataset | PairStream: ...
def open_pairs(
    path: str | Path,
    *,
    format: str = "auto",
    split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
    streaming: bool = False,
    ties: Ties = "soft",
    on_bad_row: OnBadRow = "error",
    start: int = 0,
) -> PairDataset | PairStream:
    """Return the pairs at `path`, by number or, when streaming, in order.

    path: a parquet file (or a pattern such as "pairs-*.parquet"), a folder of parquet files, a folder that datasets'
        save_to_disk wrote, a folder with metadata.jsonl, or a hub id "owner/name" or "owner/name@revision".
    format: a name of READERS, or "auto" to tell it by the columns.
    limit: keep the first so many good pairs. Not streaming, a hub dataset is downloaded whole all the same.
    ties: "soft" keeps a tie with p_chosen = 1/2, "drop" leaves it out and counts it, "error" raises.
    on_bad_row: "error" raises BadRow, "skip" leaves the row out and counts it; see `summary()`.
    start: when streaming, the row to begin at.

    Raises UserError for a path, format, split or option that cannot be, and where no row is usable.
    """
    check_options(format, READERS, ties, on_bad_row, limit)
    if start < 0 or (start and not streaming):
        raise UserError(f"start={start}: expected a row from 0 on, and streaming=True. Index a PairDataset instead.")
    from palate.readers.opening import open_stream, open_table

    if streaming:
        source = open_stream(str(path), split, revision)
        reader = choose(format, source.columns, READERS, str(path))
        return PairStream(source, reader, ties=ties, on_bad_row=on_bad_row, limit=limit, start=start)
    table = open_table(str(path), split, revision)
    reader = choose(format, table.columns, READERS, str(path))
    pairs = PairDataset(table, reader, ties=ties, on_bad_row=on_bad_row, limit=limit)
    if not len(pairs):
        raise UserError(f"There is no usable pair. {pairs.summary()}")
    return pairs

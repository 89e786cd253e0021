"""Rankings of images as their publishers keep them -> `palate.records.Ranking`.

    rankings = open_rankings("HPDv2/test.json")                       # images beside it, in HPDv2/test
    rankings = open_rankings("ImageReward/data/test.json", images="ImageReward/data/test_images")

A format is told by its fields, as in `palate.readers.open_pairs`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from palate.errors import UserError, unknown
from palate.readers import hpdv2, imagereward
from palate.readers.reader import BadRow, OnBadRow, Unreadable, reason_of
from palate.records import Media, Ranking

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class RankingReader:
    """One outside format of rankings."""

    name: str
    needs: tuple[str, ...]
    """Fields that a row must have."""
    build: Callable[[Mapping[str, Any]], tuple[str, Sequence[str], Sequence[float], Mapping[str, Any]]]
    """row -> (prompt, image paths, scores, meta). Raises UserError (Unreadable where it can advise)."""
    unit: str
    """What the scores are; higher is better."""
    rows: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = list
    """Rows of the file -> rows of rankings."""


RANKINGS: dict[str, RankingReader] = {
    "hpdv2": RankingReader("hpdv2", ("prompt", "image_path", "rank"), hpdv2.ranking, "negative rank"),
    "hpdv2_train": RankingReader("hpdv2_train", ("prompt", "human_preference"), hpdv2.choice, "choice"),
    "imagereward": RankingReader(
        "imagereward", ("prompt", "generations", "ranking"), imagereward.ranking, "negative rank"
    ),
    "imagereward_db": RankingReader(
        "imagereward_db",
        ("prompt", "prompt_id", "image_path", "rank", "image_amount_in_total"),
        imagereward.ranking,
        "negative rank",
        imagereward.by_prompt,
    ),
}


class RankingDataset:
    """The usable rankings of a file, by number. Made by `open_rankings`.

    `meta["annotators"]`, where there is one, holds each annotator's own scores, in the order of the outputs.
    """

    def __init__(
        self, name: str, format: str, rankings: list[tuple[int, Ranking]], bad: list[BadRow], rows: int
    ) -> None:
        self.name, self.format, self.rows = name, format, rows
        self._rankings = rankings
        self._bad = {error.row: error for error in bad}

    def __len__(self) -> int:
        return len(self._rankings)

    def __getitem__(self, index: int) -> Ranking:
        """Return ranking `index`. Its images are paths, which may lead nowhere; `decoded` looks."""
        return self._rankings[index][1]

    def __iter__(self) -> Iterator[Ranking]:
        return (ranking for _, ranking in self._rankings)

    def row(self, index: int) -> int:
        """Return the number in the source, from 0, of the row that ranking `index` comes from."""
        return self._rankings[index][0]

    def prompts(self) -> list[str]:
        """Return the prompt of every ranking."""
        return [ranking.prompt for ranking in self]

    def decoded(self, index: int) -> tuple[Ranking, list[Image.Image]]:
        """Return ranking `index` with its pictures, as RGB. Raises BadRow where one cannot be read."""
        row, ranking = self._rankings[index]
        try:
            return ranking, [output.decode() for output in ranking.outputs]
        except UserError as error:
            self._bad[row] = BadRow(row, "an image is unreadable", str(error))
            raise self._bad[row] from None

    @property
    def bad(self) -> list[BadRow]:
        """The bad rows met so far, by row."""
        return [self._bad[row] for row in sorted(self._bad)]

    def summary(self) -> str:
        """Return one line: how many rankings of how many rows, and what was left out, by reason."""
        reasons = Counter(error.reason for error in self._bad.values())
        left_out = ", ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(5))
        return f"{self.name} ({self.format}): {len(self):,} rankings of {self.rows:,} rows" + (
            f"; bad rows: {left_out}." if left_out else "."
        )


def open_rankings(
    path: str | Path,
    *,
    format: str = "auto",
    images: str | Path | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "error",
) -> RankingDataset:
    """Return the rankings in a JSON file (a list of objects) or a parquet file.

    format: a name of `RANKINGS`, or "auto" to tell it by the fields.
    images: folder that image paths start from; None takes a folder beside the file that is named as it
        (HPDv2/test.json -> HPDv2/test), else the file's own folder.
    limit: keep the first so many good rankings.
    on_bad_row: "error" raises BadRow, "skip" leaves the row out and keeps it in `bad`.

    Raises UserError for a file that cannot be read or holds no known format, and where no row is usable.
    """
    file = Path(path).expanduser()
    raw = _read(file)
    if not raw:
        raise UserError(f"{file} holds no rows.")
    reader = _reader(format, raw[0], file)
    root = (
        Path(images) if images is not None else file.with_suffix("") if file.with_suffix("").is_dir() else file.parent
    )
    good: list[tuple[int, Ranking]] = []
    bad: list[BadRow] = []
    rows = reader.rows(raw)
    for number, row in enumerate(rows):
        if len(good) == limit:
            rows = rows[:number]
            break
        try:
            good.append((number, _ranking(reader, row, root)))
        except UserError as error:
            found = BadRow(number, *reason_of(error))
            if on_bad_row == "error":
                raise found from None
            bad.append(found)
    dataset = RankingDataset(str(file), reader.name, good, bad, len(rows))
    if not good:
        raise UserError(f"There is no usable ranking. {dataset.summary()}")
    return dataset


def is_rankings(path: str | Path) -> bool:
    """Whether a file's fields are those of a known format of rankings. Never raises: another reader may know it."""
    try:
        return _sniff(_read(Path(path).expanduser(), first=True)[0]) is not None
    except (UserError, IndexError):
        return False


def _read(file: Path, first: bool = False) -> list[dict[str, Any]]:
    if not file.is_file():
        raise UserError(f"There is no file {file}. Give a JSON or parquet file of rankings.")
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            opened = pq.ParquetFile(file)
            rows: Any = next(opened.iter_batches(1)).to_pylist() if first else opened.read().to_pylist()
        elif file.suffix == ".json":
            rows = json.loads(file.read_text(encoding="utf-8"))
        else:
            raise ValueError("its name ends neither in .json nor in .parquet")
    except (OSError, ValueError, RecursionError, StopIteration) as error:  # arrow's errors are ValueErrors or OSErrors
        raise UserError(f"{file} cannot be read as rankings: {error}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} must hold a list of objects, one a ranking.")
    return rows


def _sniff(row: Mapping[str, Any]) -> RankingReader | None:
    """Return the format that needs most of the row's fields: imagereward_db has all that hpdv2 needs."""
    fitting = [reader for reader in RANKINGS.values() if set(reader.needs) <= row.keys()]
    return max(fitting, key=lambda reader: len(reader.needs), default=None)


def _reader(format: str, row: Mapping[str, Any], file: Path) -> RankingReader:
    if format != "auto" and format not in RANKINGS:
        raise UserError(unknown("format of rankings", format, (*RANKINGS, "auto")))
    reader = _sniff(row) if format == "auto" else RANKINGS[format]
    if reader is None or not set(reader.needs) <= row.keys():
        known = list(RANKINGS.values()) if reader is None else [reader]
        needs = "; ".join(f"{r.name} needs {', '.join(r.needs)}" for r in known)
        raise UserError(f"{file} has fields of no such format. Found: {', '.join(row) or 'none'}. Known: {needs}.")
    return reader


def _ranking(reader: RankingReader, row: Mapping[str, Any], root: Path) -> Ranking:
    prompt, paths, scores, meta = reader.build(row)
    outputs = [Media(path=str(_inside(root, path))) for path in paths]
    return Ranking(prompt, tuple(outputs), tuple(scores), reader.unit, source=reader.name, meta=meta)


def _inside(root: Path, path: Any) -> Path:
    if not isinstance(path, str) or not path.strip():
        raise Unreadable("an image has no name", "Give each image its path.")
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise Unreadable(
            "an image's path leads out of the folder", f"It is {path[:200]!r}. Name it relative to images=."
        )
    return root / parts

"""The exported log of votes -> columns.

One row per vote, in JSON Lines, CSV or parquet, alone or as `votes.*` in a folder or zip. Columns: `model_a`, `model_b`,
`outcome` (a, b, tie, both_bad) and `voter`; where known also `prompt`, `category`, `created` (ISO 8601 or seconds since
1970), `flags` (names of `table.FLAGS`, as a list or separated by spaces) and measures of both outputs, `a/NAME` and
`b/NAME`. Other columns are not read. A row with flag gold and one model on both sides is a check and no comparison.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from apps.arena.ratings.table import VoteLog, VoteTable
from palate.errors import UserError

SUFFIXES = (".jsonl", ".csv", ".parquet")
NEEDED = ("model_a", "model_b", "outcome", "voter")
_TEXTS = ("model_a", "model_b", "voter", "prompt", "category")


def read_log(path: str | Path) -> VoteTable:
    """Return the votes of an exported log. UserError names the file and the row of what cannot be read."""
    path = Path(path)
    if path.is_dir():
        inside = [path / f"votes{suffix}" for suffix in SUFFIXES if (path / f"votes{suffix}").is_file()]
        if not inside:
            raise UserError(f"The folder {path} holds no log: expected votes.jsonl, votes.csv or votes.parquet in it.")
        path = inside[0]
    if not path.is_file():
        raise UserError(f"There is no log of votes at {path}. Export one from the arena's admin page.")
    if path.suffix == ".zip":
        return _from_zip(path)
    with path.open("rb") as file:
        return from_rows(_rows(file, path.suffix, str(path)), str(path))


def from_rows(rows: Iterable[Mapping[str, Any]], name: str = "the log") -> VoteTable:
    """Return the votes of rows as they are in an exported log. name: of the source, for messages."""
    log = VoteLog()
    for number, row in enumerate(rows, start=1):
        try:
            _append(log, row)
        except UserError as error:
            raise UserError(f"{name}, vote {number}: {error}") from None
    return log.table()


def _append(log: VoteLog, row: Mapping[str, Any]) -> None:
    missing = [column for column in NEEDED if row.get(column) in (None, "")]
    if missing:
        raise UserError(f"{' and '.join(missing)} is missing. A vote needs {', '.join(NEEDED)}.")
    flags = row.get("flags") or ()
    flags = flags.split() if isinstance(flags, str) else list(flags)
    if row["model_a"] == row["model_b"] and "gold" in flags:
        return
    texts = {column: str(row.get(column) if row.get(column) is not None else "") for column in _TEXTS}
    measures = {column[2:] for column in row if column[:2] in ("a/", "b/")}
    for measure in sorted(measures):
        log.add_covariate(measure)
    log.append(
        **texts,
        outcome=row["outcome"],
        created=_moment(row.get("created")),
        flags=flags,
        measures_a={name: _number(row, f"a/{name}") for name in measures},
        measures_b={name: _number(row, f"b/{name}") for name in measures},
    )


def _moment(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _number(row: Mapping[str, Any], column: str) -> float:
    value = row.get(column)
    try:
        return float("nan") if value in (None, "") else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(f"{column} must be a number, not {value!r}.") from None


def _from_zip(path: Path) -> VoteTable:
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if Path(name).name in {f"votes{s}" for s in SUFFIXES}]
            if not inside:
                raise UserError(f"{path} holds no log: expected votes.jsonl, votes.csv or votes.parquet in it.")
            with archive.open(inside[0]) as file:
                content = io.BytesIO(file.read())
    except zipfile.BadZipFile:
        raise UserError(f"{path} is not a zip file, or it is damaged. Export the log again.") from None
    return from_rows(_rows(content, Path(inside[0]).suffix, f"{path}/{inside[0]}"), f"{path}/{inside[0]}")


def _rows(file: BinaryIO, suffix: str, name: str) -> Iterator[Mapping[str, Any]]:
    if suffix == ".jsonl":
        return _json_rows(file, name)
    if suffix == ".csv":
        return _csv_rows(file, name)
    if suffix == ".parquet":
        return _parquet_rows(file, name)
    raise UserError(f"{name} is no log of votes: expected a name that ends in {', '.join(SUFFIXES)} or .zip.")


def _json_rows(file: BinaryIO, name: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{name}, line {number} is not JSON ({error}). Export the log again.") from None
        if not isinstance(row, dict):
            raise UserError(f"{name}, line {number} is not an object with a vote's columns.")
        yield row


def _csv_rows(file: BinaryIO, name: str) -> Iterator[Mapping[str, Any]]:
    try:
        yield from csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{name} is not a readable CSV file in UTF-8 ({error}). Export the log again.") from None


def _parquet_rows(file: BinaryIO, name: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{name} is not a readable parquet file ({error}). Export the log again.") from None

"""Rows of a JSON file, one a line or the items of one array, kept on disk: memory holds where each lies."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from palate.errors import UserError
from palate.readers.reader import Rows

if TYPE_CHECKING:
    from palate.readers.columns import Column

_SPACE = re.compile(r"\s*")


class _Span(NamedTuple):
    """Where a row lies, in bytes, and how to find it by eye."""

    start: int
    length: int
    kind: str
    number: int


class JsonRows:
    """The rows of a `.jsonl` file, blank lines being none, or of a `.json` file that holds one array.

    Names of images start from the file's folder. A row that is no object is broken and does not hurt the others; an
    array whose syntax is broken is refused whole.
    """

    def __init__(self, file: Path, *, absolute: bool) -> None:
        self.name = str(file)
        self.rows = Rows(root=file.parent, absolute=absolute)
        self._file = file
        broken: dict[int, tuple[str, str]] = {}
        columns: dict[str, None] = {}
        offsets: list[tuple[int, int]] = []
        spans: Callable[[BinaryIO], Iterator[_Span]] = _items if file.suffix == ".json" else _lines
        try:
            with file.open("rb") as found, file.open("rb") as again:
                for span in spans(found):
                    row = _parse(_bytes_of(again, span.start, span.length))
                    if row is None:
                        reason = f"the {span.kind} is not a JSON object"
                        broken[len(offsets)] = reason, f"See {span.kind} {span.number} of {file.name}."
                    columns.update(dict.fromkeys(row or ()))
                    offsets.append((span.start, span.length))
        except OSError as error:
            raise UserError(f"Cannot read {self.name!r}: {error.strerror}.") from None
        self.broken: Mapping[int, tuple[str, str]] = broken
        self.columns = tuple(columns)
        self._offsets = np.array(offsets, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, index: int, columns: list[str]) -> Mapping[str, Any]:
        with self._file.open("rb") as file:
            row = _parse(_bytes_of(file, *self._offsets[index].tolist())) or {}
        return {name: row.get(name) for name in columns}

    def table(self, columns: list[str]) -> Mapping[str, Column]:
        table: dict[str, list[Any]] = {name: [] for name in columns}
        with self._file.open("rb") as file:
            for start, length in self._offsets.tolist():
                row = _parse(_bytes_of(file, start, length)) or {}
                for name in columns:
                    table[name].append(row.get(name))
        return table


def _bytes_of(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def _lines(file: BinaryIO) -> Iterator[_Span]:
    at = 0
    for number, line in enumerate(file, 1):
        if line.strip():
            yield _Span(at, len(line), "line", number)
        at += len(line)


def _items(file: BinaryIO) -> Iterator[_Span]:
    """Yield the items of the array that the file is. Raises UserError where the text is not one."""
    data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name!r} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    at = len(data) - len(text.encode())  # a byte order mark
    decoder, place, number = json.JSONDecoder(), 0, 0

    def after(pattern: str, expected: str) -> str:
        nonlocal place
        place = _end(_SPACE, text, place)
        found = text[place : place + 1]
        if not found or found not in pattern:
            line = text.count("\n", 0, place) + 1
            raise UserError(
                f"{file.name!r} is not a JSON array of rows: line {line} has {found or 'nothing'!r} where {expected} "
                "should be. Write it again, or name a file with one object a line .jsonl."
            )
        place += 1
        return found

    after("[", "the array's [")
    done, counted = 0, 0  # characters up to `done` are `counted` bytes
    while (start := _end(_SPACE, text, place)) < len(text) and not (number == 0 and text[start] == "]"):
        try:
            _, stop = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file.name!r} is broken in item {number} (counted from 0), line {text.count(chr(10), 0, start) + 1}: "
                f"{error}. Write it again, or cut it there."
            ) from None
        counted, done = counted + len(text[done:start].encode()), start
        length = len(text[start:stop].encode())
        yield _Span(at + counted, length, "item", number)
        counted, done, place, number = counted + length, stop, stop, number + 1
        if after(",]", "a comma or ]") == "]":
            return
    after("]", "the array's ]")


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    match = pattern.match(text, place)
    return place if match is None else match.end()


def _parse(row: bytes) -> dict[str, Any] | None:
    """Return the object in a row's bytes; None if it is none."""
    try:
        value = json.loads(row.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None

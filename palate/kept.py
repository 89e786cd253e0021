"""Rows kept in a JSONL file as they are made, each under the key of what made it: a killed run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from palate.errors import UserError

FAILURE = "failure"
KEY = "key"


def failed(row: Mapping[str, Any]) -> bool:
    """Whether a row says why there is no result instead of giving one."""
    return bool(row.get(FAILURE))


class KeptRows:
    """The rows of a file by their `key`. Failures of an earlier run are forgotten, so that they are tried again.

    with KeptRows(path).open() as kept:
        if key not in kept.rows:
            kept.add({"key": key, "answer": ...})
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: dict[str, dict[str, Any]] = {}
        self._file: IO[str] | None = None

    @contextmanager
    def open(self) -> Iterator[KeptRows]:
        """Read the file, and keep it open for further rows.

        A line that a kill tore is dropped, so that it does not swallow the next. UserError where the file holds other
        than rows, or cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
            self._read(lines)
            if lines:
                part = self.path.with_name(self.path.name + ".part")
                part.write_text("".join(_line(row) for row in self.rows.values()), encoding="utf-8")
                part.replace(self.path)
            with self.path.open("a", encoding="utf-8") as self._file:
                yield self
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror or error}.") from error
        finally:
            self._file = None

    def add(self, row: dict[str, Any]) -> None:
        """Write one row; it is on its way to the disk when this returns."""
        assert self._file is not None, "KeptRows.add needs the file open"
        self._file.write(_line(row))
        self._file.flush()
        self.rows[row[KEY]] = row

    def _read(self, lines: list[bytes]) -> None:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                if number == len(lines):
                    continue
                row = None
            if not isinstance(row, dict) or not isinstance(row.get(KEY), str):
                raise UserError(
                    f"{self.path}, line {number}, is no row that palate wrote. Name a new file, or one to continue."
                )
            if not failed(row):
                self.rows[row[KEY]] = row


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"

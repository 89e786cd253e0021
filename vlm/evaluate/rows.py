"""Rows of JSON and JSONL files, whatever their names end with, with the place of each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.errors import UserError


@dataclass(frozen=True)
class Unread:
    """A row that is no JSON, and why."""

    reason: str


def read_rows(path: str | Path) -> list[tuple[str, Any]]:
    """Return (place, row) for each row of a JSON list or of JSONL; a row that is no JSON is `Unread`.

    A file that is one JSON value other than a list has this one row. UserError for a file that cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read: it is no UTF-8 text ({error.reason} at byte {error.start}).") from None
    whole = _parse(text)
    if not text.strip() or whole == []:
        raise UserError(f"{path} is empty.")
    if isinstance(whole, list):
        return [(f"row {number}", row) for number, row in enumerate(whole, 1)]
    if not isinstance(whole, Unread):
        return [("line 1", whole)]
    if text.lstrip().startswith("["):
        raise UserError(f"{path} is {whole.reason}. Mend it, or give JSONL, of which single rows can be left out.")
    lines = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [(place, _parse(line)) for place, line in lines]


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return Unread(f"not JSON ({error or type(error).__name__})")

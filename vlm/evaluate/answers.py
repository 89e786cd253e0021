"""Answers of a model to a benchmark's questions, read from the files that people have, with row-level errors.

A row names its question as id, question_id, image_id or image, and its answer as answer, response, caption or text.
Where no row names a question, as in the files that POPE's own script takes, rows stand in the order of the questions. A
JSON object from question to answer is read, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.errors import UserError
from vlm.evaluate.rows import Unread, read_rows

ID_FIELDS = ("id", "question_id", "image_id", "image")
TEXT_FIELDS = ("answer", "response", "caption", "text")


@dataclass(frozen=True)
class Answers:
    """What a file answers. `texts` is question id -> answer; `bad` says what is wrong with which row."""

    texts: Mapping[str, str]
    bad: Sequence[str] = ()

    def for_questions(self, ids: Sequence[str], name: str, *, partial: bool = False) -> dict[str, str]:
        """Return the answers to these questions. UserError where rows are bad or answers missing, unless `partial`."""
        found = {key: self.texts[key] for key in ids if key in self.texts}
        lacking = [key for key in ids if key not in self.texts]
        if not found:
            raise UserError(f"{name} answers none of the {len(ids)} questions. {self._first_bad()}")
        if not partial and (self.bad or lacking):
            parts = [f"{len(self.bad)} rows are unusable" if self.bad else ""]
            parts += [f"{len(lacking)} of {len(ids)} questions have no answer ({_some(lacking)})" if lacking else ""]
            raise UserError(
                f"{name}: {' and '.join(filter(None, parts))}. {self._first_bad()}"
                "Mend the file, or give --partial to score the rest and say so."
            )
        return found

    def _first_bad(self) -> str:
        return "".join(f"\n  {reason}" for reason in self.bad[:5]) + ("\n" if self.bad else "")


def read_answers(path: str | Path, ids: Sequence[str], aliases: Mapping[str, str] | None = None) -> Answers:
    """Return the answers in a file to the questions with these ids, and what is wrong with the rows that are none.

    aliases: other names of questions -> their ids. A row that answers no question, answers one a second time, has no text or
    carries a `failure` is bad. Raises UserError where the file cannot be read at all.
    """
    known, names = set(ids), aliases or {}
    rows = _rows(path)
    texts: dict[str, str] = {}
    bad: list[str] = []
    unnamed = bool(rows) and not any(field in row for _, row in rows if isinstance(row, dict) for field in ID_FIELDS)
    if unnamed and len(rows) != len(ids):
        raise UserError(
            f"{path}: no row names its question, and there are {len(rows)} rows for {len(ids)} questions. "
            f"Give each row one of {', '.join(ID_FIELDS)}."
        )
    for position, (place, row) in enumerate(rows):
        where = f"{place}: "
        if isinstance(row, Unread):
            bad.append(f"{where}{row.reason}")
            continue
        if not isinstance(row, dict):
            bad.append(f"{where}expected an object, got {_short(row)}")
            continue
        key = str(ids[position]) if unnamed else next((_key(row[f]) for f in ID_FIELDS if f in row), None)
        key = names.get(key, key) if key is not None else None
        text = next((row[f] for f in TEXT_FIELDS if f in row), None)
        if key is None or key not in known:
            bad.append(f"{where}it answers no question of this benchmark ({_short(row)})")
        elif row.get("failure"):
            bad.append(f"{where}question {key} was not answered: {_short(row['failure'])}")
        elif "label" in row and text is row.get("text"):
            bad.append(f"{where}this is a question of POPE with its label, not an answer")
        elif not isinstance(text, str):
            bad.append(f"{where}question {key} has no text for an answer (one of {', '.join(TEXT_FIELDS)})")
        elif key in texts:
            bad.append(f"{where}question {key} is answered a second time")
        else:
            texts[key] = text
    return Answers(texts, bad)


def _rows(path: str | Path) -> list[tuple[str, Any]]:
    rows = read_rows(path)
    whole = rows[0][1] if len(rows) == 1 else None
    if isinstance(whole, dict) and not any(field in whole for field in (*ID_FIELDS, *TEXT_FIELDS)):
        return [(f"entry {key!r}", {"id": key, "answer": value}) for key, value in whole.items()]
    return rows


def _key(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")

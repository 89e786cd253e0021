"""Outputs of one model on disk: a folder of `palate sample`, any folder of pictures, or a file of answers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
PROMPT = ("prompt", "Prompt", "question", "text_prompt")
ANSWER = ("answer", "response", "output", "text")
LISTS = (".jsonl", ".csv", ".tsv")


@dataclass(frozen=True)
class Made:
    """One output as it lies on disk. Of picture and text one is set."""

    prompt: str
    picture: Path | None = None
    text: str | None = None
    category: str = ""
    question: Path | None = None
    seed: int | None = None


def read_source(path: Path, prompts: dict[str, dict[str, Any]] | None = None) -> tuple[list[Made], int]:
    """Return the outputs in a folder or file, and how many were left out as flagged by a safety checker.

    A folder with metadata.jsonl: file_name, prompt, and perhaps seed, category, flagged. Another folder: the prompt of a
    picture is what `prompts` says of its name, else the text file beside it (`cat.png`, `cat.txt`), else its name in words.
    A .jsonl, .csv or .tsv file: answers, with image (of the question), prompt or question, and answer.
    """
    if path.is_file() and path.suffix in LISTS:
        return [_answer(path, number, row) for number, row in enumerate(read_rows(path), 1)], 0
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder of pictures nor a {', '.join(LISTS)} file of answers.")
    if (path / "metadata.jsonl").is_file():
        rows = list(read_rows(path / "metadata.jsonl"))
        kept = [row for row in rows if not row.get("flagged")]
        return [_sample(path, number, row) for number, row in enumerate(kept, 1)], len(rows) - len(kept)
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
    if not files:
        raise UserError(f"{path} holds no pictures ({', '.join(PICTURES)}).")
    return [_picture(path, file, prompts or {}) for file in files], 0


def read_prompt_list(path: Path) -> dict[str, dict[str, Any]]:
    """Return file name -> row of a .jsonl, .csv or .tsv with file_name, prompt and perhaps category."""
    rows = {}
    for number, row in enumerate(read_rows(path), 1):
        rows[str(_one_of(path, number, row, ("file_name",)))] = {**row, "prompt": _one_of(path, number, row, PROMPT)}
    return rows


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl, .csv or .tsv file. Raises UserError for a line that is not an object."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"Cannot read {path}: {error}.") from None
    if path.suffix in (".csv", ".tsv"):
        yield from csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ",")
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(f"{path}, line {number}: not JSON. Mend the line or leave it out.") from None
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number}: expected an object like {{"prompt": "..."}}, got {line[:60]}.')
        yield row


def _sample(folder: Path, number: int, row: dict[str, Any]) -> Made:
    where = folder / "metadata.jsonl"
    file = folder / str(_one_of(where, number, row, ("file_name",)))
    return Made(_prompt(where, number, row), file, None, str(row.get("category") or ""), seed=_seed(row))


def _picture(folder: Path, file: Path, prompts: dict[str, dict[str, Any]]) -> Made:
    name = file.relative_to(folder).as_posix()
    if name in prompts:
        return Made(str(prompts[name]["prompt"]), file, category=str(prompts[name].get("category") or ""))
    beside = file.with_suffix(".txt")
    said = beside.read_text(encoding="utf-8").strip() if beside.is_file() else ""
    return Made(said or " ".join(file.stem.replace("_", " ").replace("-", " ").split()), file)


def _answer(path: Path, number: int, row: dict[str, Any]) -> Made:
    question = path.parent / str(row["image"]) if row.get("image") else None
    answer = str(_one_of(path, number, row, ANSWER))
    return Made(_prompt(path, number, row), None, answer, str(row.get("category") or ""), question, _seed(row))


def _prompt(path: Path, number: int, row: dict[str, Any]) -> str:
    prompt = str(_one_of(path, number, row, PROMPT)).strip()
    if not prompt:
        raise UserError(f"{path}, row {number}: the prompt is empty. Give it a text, or leave the row out.")
    return prompt


def _seed(row: dict[str, Any]) -> int | None:
    try:
        return int(row["seed"]) if row.get("seed") not in (None, "") else None
    except (TypeError, ValueError):
        raise UserError(f"The seed {row['seed']!r} is not a whole number.") from None


def _one_of(path: Path, number: int, row: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise UserError(f"{path}, row {number}: no field {' or '.join(names)}. Found: {', '.join(map(str, row))}.")

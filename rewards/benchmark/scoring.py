"""Scores of cases by several scorers, written as they come, so that a killed run goes on where it stood.

A scorer's file holds a first line on what made it, then a line a case. A file of other data, other weights or another
preprocessing is written anew; a torn last line is cut off, and what failed is tried again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from palate.errors import UserError
from palate.readers import BadRow
from rewards.benchmark.cases import Case, Cases, Judgement
from rewards.protocol import ScoreBatch, Scorer
from rewards.stages import score_together


@dataclass(frozen=True)
class Scored:
    """Cases with what people and scorers said of them; those that could not be read are left out."""

    cases: list[int]
    """Number of each case in `Cases`."""
    prompts: list[str]
    judgements: list[Judgement]
    values: dict[str, list[np.ndarray]]
    """Scorer -> (K,) scores of each case; NaN where an image has none."""
    about: dict[str, dict[str, str]]
    """Scorer -> unit, weights, preprocess, dtype."""
    failures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Scorer, or "" for the reader -> {row, image, reason} of what has no score."""


def score_cases(cases: Cases, scorers: Sequence[Scorer], folder: Path, *, chunk: int = 64) -> Scored:
    """Score all cases, `chunk` at a time, and return the scores. What `folder` holds already is not scored again.

    Each image is opened once for all scorers. UserError where two scorers have one name, or no case can be read.
    """
    names = [scorer.name for scorer in scorers]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"Two scorers are called {twice!r}. Name each once; load_scorer's options can rename one.")
    folder.mkdir(parents=True, exist_ok=True)
    files = {"": _File(folder / "cases.jsonl")}
    files |= {name: _File(folder / f"{file_name(name)}.jsonl") for name in names}
    files[""].begin({"data": cases.fingerprint})
    opened = (_taken(cases, number) for number in range(len(cases)))
    first = next((case for case in opened if isinstance(case, Case)), None)
    if first is None:
        raise UserError(f"None of the cases can be read. {cases.summary()}")
    # One case each, to learn what makes their scores; a scorer that is wrong should fail now.
    for scorer, batch in zip(scorers, _score(scorers, [first]), strict=True):
        files[scorer.name].begin({"data": cases.fingerprint, "scorer": scorer.name, **_about(batch)})
    todo = [k for k in range(len(cases)) if any(k not in file.done for file in files.values())]
    for start in tqdm(range(0, len(todo), chunk), "score", unit="chunk", disable=None):
        numbers = todo[start : start + chunk]
        read = dict(zip(numbers, _read(cases, numbers, files[""]), strict=True))
        lacking: dict[tuple[int, ...], list[Scorer]] = {}
        for scorer in scorers:
            mine = [k for k, case in read.items() if case is not None and k not in files[scorer.name].done]
            lacking.setdefault(tuple(mine), []).append(scorer)
        for these, together in lacking.items():
            wanted = {k: case for k in these if (case := read[k]) is not None}
            batches = _score(together, list(wanted.values())) if wanted else []
            for scorer, batch in zip(together, batches, strict=False):
                files[scorer.name].write(_lines(wanted, batch))
    return _gather(files, names)


def file_name(name: str) -> str:
    """Return a name that a file can have, different for different scorers."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    return plain if plain == name else f"{plain}-{blake2b(name.encode(), digest_size=3).hexdigest()}"


class _File:
    """Lines of JSON, one a case: {"case": number, ...}."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] = {}
        self.done: dict[int, dict[str, Any]] = {}

    def begin(self, header: Mapping[str, Any]) -> None:
        """Take up what was written under this header, or begin anew under it."""
        self.header = dict(header)
        rows = list(_whole_lines(self.path))
        if rows and rows[0] == self.header:
            self.done = {row["case"]: row for row in rows[1:] if not row.get("failed") and not row.get("failures")}
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in [self.header, *self.done.values()]), encoding="utf-8")
        os.replace(part, self.path)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append the rows that are not there yet."""
        new = {row["case"]: row for row in rows if row["case"] not in self.done}
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in new.values()))
        self.done |= new


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _read(cases: Cases, numbers: Sequence[int], file: _File) -> Iterator[Case | None]:
    """Yield each case, or None where it cannot be read; what people said of it goes into `file`.

    Cases are opened in threads: the reader of pairs decodes their images.
    """
    with ThreadPoolExecutor(thread_name_prefix="read") as pool:
        for number, found in zip(numbers, pool.map(partial(_taken, cases), numbers), strict=True):
            if isinstance(found, BadRow):
                file.write([{"case": number, "row": found.row, "failed": f"{found.reason}. {found.advice}"}])
                yield None
            else:
                file.write([{"case": number, "row": found.row, "prompt": found.prompt, **asdict(found.judgement)}])
                yield found


def _taken(cases: Cases, number: int) -> Case | BadRow:
    try:
        return cases.take(number)
    except BadRow as error:
        return error


def _score(scorers: Sequence[Scorer], cases: Sequence[Case]) -> list[ScoreBatch]:
    """Return each scorer's batch over all images of the cases; each image is opened once for all of them."""
    prompts = [case.prompt for case in cases for _ in case.images]
    return score_together(scorers, prompts, [image for case in cases for image in case.images])


def _about(batch: ScoreBatch) -> dict[str, str]:
    return {"unit": batch.unit, "weights": batch.weights, "preprocess": batch.preprocess, "dtype": batch.dtype}


def _lines(cases: Mapping[int, Case], batch: ScoreBatch) -> list[dict[str, Any]]:
    """Return a line a case: its scores, null where one failed, and the reasons by image."""
    lines, at = [], 0
    for number, case in cases.items():
        places = range(at, at + len(case.images))
        values = [float(batch.values[k]) if k not in batch.failures else None for k in places]
        failed = {str(k - at): batch.failures[k] for k in places if k in batch.failures}
        lines.append({"case": number, "row": case.row, "values": values, "failures": failed})
        at += len(case.images)
    return lines


def _gather(files: Mapping[str, _File], names: Sequence[str]) -> Scored:
    read = {number: row for number, row in sorted(files[""].done.items()) if "failed" not in row}
    failures: dict[str, list[dict[str, Any]]] = {
        "": [{"row": row["row"], "reason": row["failed"]} for row in files[""].done.values() if "failed" in row]
    }
    values: dict[str, list[np.ndarray]] = {}
    for name in names:
        rows = [files[name].done[number] for number in read]
        values[name] = [np.array([np.nan if v is None else v for v in row["values"]]) for row in rows]
        failures[name] = [
            {"row": row["row"], "image": int(image), "reason": reason}
            for row in rows
            for image, reason in row["failures"].items()
        ]
    return Scored(
        cases=list(read),
        prompts=[row["prompt"] for row in read.values()],
        judgements=[_judgement(row) for row in read.values()],
        values=values,
        about={name: {k: v for k, v in files[name].header.items() if k not in ("data", "scorer")} for name in names},
        failures={name: rows for name, rows in failures.items() if rows},
    )


def _judgement(row: Mapping[str, Any]) -> Judgement:
    annotators = tuple(tuple(values) for values in row["annotators"])
    return Judgement(tuple(row["values"]), annotators, tuple(row["tally"]) if row["tally"] else None)

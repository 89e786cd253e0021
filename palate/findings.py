"""What an examination of data found: grouped by what is wrong, counted, with the first rows named."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from palate.readers.reader import BadRow

Level = Literal["error", "warning"]
SHOWN = 5
"""Rows that are named of each finding."""


@dataclass
class Finding:
    """One thing that is wrong, and the rows (of the source, from 0) where it is."""

    level: Level
    what: str
    advice: str
    rows: list[int] = field(default_factory=list)
    example: str = ""
    """What exactly is wrong in the first row, where rows differ."""


class Findings:
    """Everything found, and the figures worth telling where nothing is wrong."""

    def __init__(self) -> None:
        self.figures: dict[str, str] = {}
        self._found: dict[str, Finding] = {}

    def add(self, level: Level, what: str, advice: str, row: int | None = None, example: str = "") -> None:
        """Note something wrong with a row, or with the data or the model as a whole."""
        finding = self._found.setdefault(what, Finding(level, what, advice, example=example))
        if row is not None and (not finding.rows or finding.rows[-1] != row):
            finding.rows.append(row)

    def add_bad_rows(self, bad: Iterable[BadRow]) -> None:
        """Note the rows that could not be read."""
        for one in bad:
            self.add("error", one.reason, one.advice, one.row)

    def add_unread(self, bad: Sequence[BadRow]) -> None:
        """Note that held-out rows could not be read; their numbers are not those of the data examined."""
        if bad:
            what = f"{len(bad):,} of the held-out rows cannot be read"
            self.add("error", what, "Examine them by themselves, as --data.", example=f"e.g. {bad[0]}")

    @property
    def all(self) -> list[Finding]:
        """Errors first, then by how many rows they concern."""
        return sorted(self._found.values(), key=lambda f: (f.level != "error", -len(f.rows)))

    @property
    def has_errors(self) -> bool:
        return any(finding.level == "error" for finding in self._found.values())

    def rows_with_errors(self) -> Collection[int]:
        """Return the rows that an error concerns."""
        return {row for finding in self._found.values() if finding.level == "error" for row in finding.rows}

    def __str__(self) -> str:
        """Return the table: level, rows, what; under each what to do."""
        lines = [f"{name}: {value}" for name, value in self.figures.items()]
        found = self.all
        if not found:
            return "\n".join([*lines, "", "Nothing is wrong."])
        counts = [f"{len(finding.rows):,}" if finding.rows else "all" for finding in found]
        width = max(map(len, ["rows", *counts]))
        lines += ["", f"{'':7}  {'rows':>{width}}  what"]
        for finding, count in zip(found, counts, strict=True):
            lines.append(f"{finding.level:7}  {count:>{width}}  {finding.what}{_where(finding.rows)}")
            more = [finding.example, finding.advice]
            lines += [f"{'':{width + 9}}  {text}" for text in more if text]
        return "\n".join(lines)


def _where(rows: list[int]) -> str:
    if not rows:
        return ""
    more = ", ..." if len(rows) > SHOWN else ""
    return f" (row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:SHOWN]))}{more})"

"""Which rows are used and which are left out, counted and said."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from palate.errors import UserError
from palate.readers.reader import BadRow, OnBadRow, Ties, Verdict

TIE_TOLERANCE = 1e-6  # labels are float32 in the wild


@dataclass
class Sorting:
    """Which rows are what, (N,) bool each, without overlap."""

    usable: np.ndarray
    bad: np.ndarray
    tie: np.ndarray
    left_out: dict[str, np.ndarray]


def sort(verdict: Verdict, ties: Ties) -> Sorting:
    """Part the rows: what the data declares to be no preference first, then bad rows, then ties by their policy."""
    open_ = np.ones(len(verdict.p_first), dtype=bool)
    left_out = {}
    for reason, mask in verdict.unusable.items():
        left_out[reason] = mask & open_
        open_ &= ~mask
    bad = np.zeros_like(open_)
    bad[list(verdict.bad)] = True
    bad &= open_
    open_ &= ~bad
    tie = open_ & (np.abs(verdict.p_first - 0.5) <= TIE_TOLERANCE)
    verdict.p_first[tie] = 0.5
    return Sorting(usable=open_ if ties == "soft" else open_ & ~tie, bad=bad, tie=tie, left_out=left_out)


@dataclass
class Tally:
    """What was looked at and what was left out."""

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    bad: dict[int, BadRow] = field(default_factory=dict)

    def take(self, sorting: Sorting, cut: int, verdict: Verdict, ties: Ties, on_bad_row: OnBadRow, at: int = 0) -> None:
        """Count the first `cut` rows, which are numbered from `at`. Raises for ties and bad rows that are errors."""
        self.rows += cut
        for reason, mask in sorting.left_out.items():
            self.left_out[reason] += int(mask[:cut].sum())
        for row in np.flatnonzero(sorting.bad[:cut]).tolist():
            self.bad[at + row] = BadRow(at + row, *verdict.bad[row])
            if on_bad_row == "error":
                raise self.bad[at + row]
        tied = np.flatnonzero(sorting.tie[:cut])
        if ties == "error" and len(tied):
            more = f", the first of {len(tied):,}" if cut > 1 else ""
            raise UserError(
                f"Row {at + int(tied[0])} (counted from 0) is a tie{more}, and "
                "ties are errors here. Drop them (ties='drop'), or keep them as p_chosen = 1/2 (ties='soft')."
            )
        if ties == "drop":
            self.left_out["tied"] += len(tied)

    def reasons(self) -> dict[str, int]:
        found = self.left_out + Counter(error.reason for error in self.bad.values())
        return dict(found)

    def listed(self) -> list[BadRow]:
        return [self.bad[row] for row in sorted(self.bad)]

    def text(self, given: int, noun: str) -> str:
        """Return what was given, of how many rows, and what was left out, by reason; noun: of what was given."""
        parts = [f"{count:,} {reason}" for reason, count in self.left_out.items() if count]
        if self.bad:
            reasons = Counter(error.reason for error in self.bad.values()).most_common()
            rows = ", ".join(map(str, sorted(self.bad)[:5])) + (", ..." if len(self.bad) > 5 else "")
            said = "; ".join(f"{count:,} x {reason}" for reason, count in reasons[:5])
            said += f"; {len(reasons) - 5} reasons more" if len(reasons) > 5 else ""
            parts.append(f"{counted(len(self.bad), 'bad row')} (rows {rows}: {said})")
        return f"{counted(given, noun)} of {counted(self.rows, 'row')}" + (
            f"; left out: {', '.join(parts)}." if parts else "."
        )


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"

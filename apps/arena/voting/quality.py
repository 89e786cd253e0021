"""Which voters' votes are set apart, by what they did: missed checks, a pace nobody reads at, one side whatever is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

GOLDS = 3
"""Gold battles from which on missing them counts."""
MISSED = 1 / 3
"""Share of gold battles above which too many were missed."""
PACED = 20
"""Votes from which on the pace counts."""
FASTEST = 700
"""Median ms between two votes below which nobody looked."""
SIDED = 20
"""Decided votes from which on a preferred side counts."""
SURE = 1e-6
"""Probability of so one-sided a record under a fair coin, below which it is no accident."""


@dataclass(frozen=True)
class Judged:
    """One vote as far as quality needs it. better: the unspoilt side of a gold battle."""

    created: int
    outcome: str
    better: str | None


def reasons_to_flag(votes: Sequence[Judged]) -> list[str]:
    """Return why a voter's votes are set apart, in words; [] for almost everybody. Order does not matter."""
    found = []
    golds = [vote for vote in votes if vote.better is not None]
    missed = sum(vote.outcome != vote.better for vote in golds)
    if len(golds) >= GOLDS and missed > MISSED * len(golds):
        found.append(f"missed {missed} of {len(golds)} checks")
    times = sorted(vote.created for vote in votes)
    gaps = sorted(after - before for before, after in pairwise(times))
    if len(times) >= PACED and gaps[len(gaps) // 2] < FASTEST:
        found.append(f"median of {gaps[len(gaps) // 2] / 1000:.1f} s between votes")
    sides = [vote.outcome for vote in votes if vote.outcome in ("a", "b") and vote.better is None]
    most = max(sides.count("a"), sides.count("b"))
    if len(sides) >= SIDED and 2 * upper_tail(most, len(sides)) < SURE:
        found.append(f"chose one side {most} times of {len(sides)}")
    return found


def upper_tail(wins: int, n: int) -> float:
    """Return P(X >= wins) for X the heads of n fair coins."""
    return math.fsum(math.comb(n, k) / 2**n for k in range(wins, n + 1))

"""Ratings of resampled votes, a thousand boards in one Newton iteration.

Voters are what is drawn again with replacement, as they are what varies. Each resample is a matrix product of voters'
weights with their counts of votes. Above `MOST_GROUPS` voters, they are first dealt at random into that many groups, and
groups are drawn: sums over random groups of independent voters are independent, too, and vary as much, so only the noise
of the spread grows, by sqrt(2/1024) = 4 % of a variance. Without voters, counts are drawn from a multinomial.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apps.arena.ratings.comparability import bounded
from apps.arena.ratings.fit import WEAK_PRIOR, Counts, Fit, fit
from apps.arena.ratings.table import BOTH_BAD, TIE, A, B, VoteTable

MOST_GROUPS = 1024


@dataclass(frozen=True)
class Pooled:
    """Votes summed by group of voters. kinds: (C,), which (first < second, outcome) a column counts. counts: (groups, C)."""

    models: int
    kinds: np.ndarray
    counts: np.ndarray

    def as_counts(self, votes: np.ndarray) -> Counts:
        """Return the counts of boards with (..., C) votes of each kind."""
        m = self.models
        cells = np.zeros((*votes.shape[:-1], m * m * BOTH_BAD))
        cells[..., self.kinds] = votes
        return Counts.of_cells(cells.reshape(*votes.shape[:-1], m, m, BOTH_BAD))


def pool(votes: VoteTable, *, rng: np.random.Generator) -> Pooled:
    """Return the votes that are not both-bad, summed by voter or by random group of voters. Sides are forgotten."""
    m, decided = len(votes.models), votes.outcome != BOTH_BAD
    shown_a, shown_b = votes.model_a[decided].astype(np.int64), votes.model_b[decided].astype(np.int64)
    flipped = np.array([B, A, TIE], dtype=np.int8)[votes.outcome[decided]]
    outcome = np.where(shown_a < shown_b, votes.outcome[decided], flipped)
    kind = (np.minimum(shown_a, shown_b) * m + np.maximum(shown_a, shown_b)) * BOTH_BAD + outcome
    kinds = np.flatnonzero(np.bincount(kind, minlength=m * m * BOTH_BAD))
    column = np.zeros(m * m * BOTH_BAD, dtype=np.int64)
    column[kinds] = np.arange(len(kinds))
    voter = votes.voter[decided]
    voting = np.flatnonzero(np.bincount(voter, minlength=1))
    seat, groups = _seats(len(voting), rng)
    group = np.zeros(len(votes.voters), dtype=np.int64)
    group[voting] = seat
    counts = np.bincount(group[voter] * len(kinds) + column[kind], minlength=groups * len(kinds))
    return Pooled(m, kinds, counts.reshape(groups, len(kinds)).astype(float))


def deal(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the rows of (voters, d) summed by random group, (groups, d)."""
    seat, groups = _seats(len(rows), rng)
    out = np.zeros((groups, rows.shape[1]))
    np.add.at(out, seat, rows)
    return out


def _seats(voters: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return each voter's group, dealt evenly in random order, and how many groups there are."""
    groups = min(voters, MOST_GROUPS)
    return rng.permutation(np.arange(voters) % groups), groups


def resample_voters(grouped: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return sums over as many groups as there are, drawn with replacement, (resamples, C), from (groups, C)."""
    groups = len(grouped)
    drawn = rng.integers(0, groups, size=(resamples, groups)) + groups * np.arange(resamples)[:, None]
    weights = np.bincount(drawn.ravel(), minlength=resamples * groups).reshape(resamples, groups)
    return weights.astype(float) @ grouped


def resample_votes(pooled: Pooled, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return votes of each kind, (resamples, C), with single votes drawn with replacement: every vote its own voter."""
    totals = pooled.counts.sum(0)
    return rng.multinomial(int(totals.sum()), totals / totals.sum(), size=resamples).astype(float)


def refit(pooled: Pooled, votes: np.ndarray, estimate: Fit, prior: float) -> Fit:
    """Return the ratings of each row of `votes` (R, C), started from those of all votes.

    A resample without finite ratings gets the weak prior. One without a tie, or without a winner, has no Davidson fit:
    it keeps the board's own tie rate by gaining that of half a vote.
    """
    counts = pooled.as_counts(votes)
    if estimate.ties == "davidson":
        whole = pooled.as_counts(pooled.counts.sum(0))
        lacking = (counts.ties.sum((-1, -2)) == 0) | (counts.ties.sum((-1, -2)) == counts.decided.sum((-1, -2)))
        share = 0.5 / whole.decided.sum() * lacking[:, None, None]
        counts = Counts(
            counts.credit + share * whole.credit,
            counts.decided + share * whole.decided,
            counts.ties + share * whole.ties,
        )
    finite = bounded(counts.credit, counts.decided, counts.ties, estimate.ties)
    return fit(
        counts,
        ties=estimate.ties,
        side=estimate.has_side,
        prior=np.where(finite, prior, max(prior, WEAK_PRIOR)),
        start=estimate,
    )

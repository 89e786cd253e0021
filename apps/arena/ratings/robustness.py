"""How little would change the board: votes that exchange neighbours, voters it rests on, the pull of a side."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from apps.arena.ratings.fit import Counts, Fit, fit
from apps.arena.ratings.intervals import effective_voters
from apps.arena.ratings.table import TIE, A, VoteTable
from palate.statistics import Estimate, ratio


@dataclass(frozen=True)
class Flip:
    """What would exchange two neighbours on the board.

    votes: new votes, all on this pair and all for the lower model, that would lift it above.
    voters: about how many voters would have to be left out, the most influential first; None if leaving out any number
        of those on one side does not suffice. From one Newton step each, so an estimate.
    """

    upper: str
    lower: str
    votes: int
    voters: int | None


@dataclass(frozen=True)
class Concentration:
    """How votes are spread over voters. top, top_ten: shares of the most active voter and of the ten most active.
    effective: (sum n_g)^2 / sum n_g^2, the number of equally active voters that would be spread alike."""

    voters: int
    top: float
    top_ten: float
    effective: float


def votes_to_flip(counts: Counts, estimate: Fit, prior: float) -> list[int]:
    """Return, for each neighbouring pair from the top, the least number of added wins of the lower that put it above.

    Exact: every candidate is fitted again, all pairs at once, and the number is found by bisection.
    """
    order = np.argsort(-estimate.theta, kind="stable")
    upper, lower = order[:-1], order[1:]
    pairs = np.arange(len(upper))
    if not len(pairs):
        return []

    def above(added: np.ndarray) -> np.ndarray:
        credit, decided, ties = (
            np.repeat(table[None], len(pairs), axis=0) for table in (counts.credit, counts.decided, counts.ties)
        )
        credit[pairs, lower, upper] += added
        decided[pairs, lower, upper] += added
        start = replace(estimate, theta=estimate.theta[None], information=estimate.information[None])
        theta = fit(
            Counts(credit, decided, ties), ties=estimate.ties, side=estimate.has_side, prior=prior, start=start
        ).theta
        return theta[pairs, lower] > theta[pairs, upper]

    too_few, enough = np.zeros(len(pairs), dtype=np.int64), np.ones(len(pairs), dtype=np.int64)
    while not (done := above(enough)).all():
        too_few, enough = np.where(done, too_few, enough), np.where(done, enough, 2 * enough)
    while np.any(enough - too_few > 1):
        middle = (too_few + enough) // 2
        flips = above(middle)
        too_few, enough = np.where(flips, too_few, middle), np.where(flips, middle, enough)
    return [int(votes) for votes in enough]


def voters_to_flip(theta: np.ndarray, bread: np.ndarray, scores: np.ndarray) -> list[int | None]:
    """Return, for each neighbouring pair from the top, how many voters' removal would exchange them; see `Flip.voters`.

    scores: (G, d) at the estimate, bread: (d, d). Leaving out voter g moves the estimates by about -bread s_g.
    """
    order = np.argsort(-theta, kind="stable")
    influence = scores @ bread[:, : len(theta)]
    found: list[int | None] = []
    for upper, lower in pairwise(order):
        gap = theta[upper] - theta[lower]
        lost = np.cumsum(-np.sort(-(influence[:, upper] - influence[:, lower])))
        enough = np.flatnonzero(lost > gap)
        found.append(int(enough[0]) + 1 if len(enough) else None)
    return found


def concentration(votes: VoteTable) -> Concentration:
    """Return how the votes are spread over those who voted."""
    each = np.sort(np.bincount(votes.voter, minlength=1))[::-1]
    each = each[each > 0]
    total = max(int(each.sum()), 1)
    return Concentration(
        len(each),
        float(each[:1].sum() / total),
        float(each[:10].sum() / total),
        effective_voters(each),
    )


def side_bias(votes: VoteTable, level: float) -> Estimate:
    """Return the share of votes with a winner that side A won, clustered by voter. 1/2 is no bias where sides are drawn
    by a fair coin."""
    decisive = votes.outcome < TIE
    voter, voters = votes.voter[decisive], len(votes.voters)
    won = np.bincount(voter, votes.outcome[decisive] == A, voters)
    return ratio(won, np.bincount(voter, minlength=voters), level=level)


def both_bad_rate(votes: VoteTable, level: float) -> Estimate | None:
    """Return the share of all votes that found neither output good, clustered by voter; None without votes."""
    if not len(votes):
        return None
    bad = np.bincount(votes.voter, votes.outcome > TIE)
    return ratio(bad, np.bincount(votes.voter), level=level)


def both_bad_rates(votes: VoteTable, level: float) -> list[Estimate]:
    """Return, for each model, the share of its votes that found neither output good, clustered by voter.

    This is the quality floor. It depends on the opponents met as well, and takes no part in the rating.
    """
    m, voters = len(votes.models), len(votes.voters)
    home = votes.voter.astype(np.int64) * m
    bad = (votes.outcome > TIE).astype(float)

    def by_voter(weight: np.ndarray | None) -> np.ndarray:
        left = np.bincount(home + votes.model_a, weight, voters * m)
        return (left + np.bincount(home + votes.model_b, weight, voters * m)).reshape(voters, m)

    part, total = by_voter(bad), by_voter(None)
    return [ratio(part[:, i], total[:, i], level=level) for i in range(m)]

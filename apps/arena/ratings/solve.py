"""One set of ratings with its covariance and its resamples, plain or with looks held equal."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit

from apps.arena.ratings import bootstrap
from apps.arena.ratings.control import as_fit, control
from apps.arena.ratings.davidson import Ties
from apps.arena.ratings.fit import Counts, Fit, fit
from apps.arena.ratings.intervals import effective_voters, sandwich, student, voter_scores
from apps.arena.ratings.table import BOTH_BAD, VoteTable
from palate import randomness

SIDE = "side"
"""What to control besides measures; it is controlled with them in any case."""


@dataclass(frozen=True)
class Settings:
    """How to rate.

    level: probability of every interval. alpha: error of the test of a pair. control: measures of the votes to hold equal,
    or "side" alone. bootstraps: resampled boards. seed: of the resamples.
    """

    ties: Ties = "davidson"
    level: float = 0.95
    alpha: float = 0.05
    control: tuple[str, ...] = ()
    bootstraps: int = 1000
    seed: int = 0

    def rng(self, section: str, purpose: str) -> np.random.Generator:
        """Return the generator of one purpose in the named section."""
        return np.random.default_rng(randomness.key(self.seed, section, 0, purpose))


@dataclass(frozen=True)
class Problem:
    """Votes on comparable models, and how they are to be rated. counts: of `votes`. prior: see `fit.fit`."""

    votes: VoteTable
    counts: Counts
    ties: Ties
    prior: float

    @property
    def crowd(self) -> np.ndarray:
        """Decided votes of each voter who cast one."""
        each = np.bincount(self.votes.voter[self.votes.outcome != BOTH_BAD], minlength=1)
        return each[each > 0]


@dataclass(frozen=True)
class Effect:
    """What moves votes besides the models. value: log-odds for A, per standard deviation `scale` of the difference of a
    measure (1 for the side); low, high: its interval."""

    name: str
    value: float
    low: float
    high: float
    scale: float


@dataclass(frozen=True)
class Solved:
    """Ratings and what follows from them; d parameters, the first m are theta.

    bread: (d, d). scores: (voters, d). covariance: (m, m), clustered by voter. effective: voters, see `intervals`.
    draws: (R, m) resampled theta, or None. missing: votes left out for an unknown measure.
    """

    fit: Fit
    bread: np.ndarray
    scores: np.ndarray
    covariance: np.ndarray
    effective: float
    draws: np.ndarray | None
    effects: list[Effect] = field(default_factory=list)
    missing: int = 0


def solve(problem: Problem, settings: Settings, name: str, resamples: int) -> Solved:
    """Return the ratings, controlled if the settings say so. name: of the section, which keys its resamples."""
    if settings.control:
        return _controlled(problem, settings, name, resamples)
    votes, prior = problem.votes, problem.prior
    m, crowd = len(votes.models), problem.crowd
    found = fit(problem.counts, ties=problem.ties, prior=prior)
    bread = found.bread()
    scores = voter_scores(found, votes.model_a, votes.model_b, votes.outcome, votes.voter, len(votes.voters))
    invented = np.zeros(len(bread))
    invented[:m] = 2 * prior * expit(found.theta) * expit(-found.theta)
    covariance = sandwich(bread, scores, len(crowd), prior=invented)[:m, :m]
    draws = None
    if resamples and len(crowd) > 1:
        rng = settings.rng(name, "bootstrap")
        pooled = bootstrap.pool(votes, rng=rng)
        draws = bootstrap.refit(pooled, bootstrap.resample_voters(pooled.counts, resamples, rng), found, prior).theta
    return Solved(found, bread, scores, covariance, effective_voters(crowd), draws)


def _controlled(problem: Problem, settings: Settings, name: str, resamples: int) -> Solved:
    votes, m = problem.votes, len(problem.votes.models)
    found = control(votes, [measure for measure in settings.control if measure != SIDE], ties=problem.ties)
    effective = effective_voters(found.crowd)
    reach = student(settings.level, effective)
    effects = [
        Effect(what, value, value - reach * error, value + reach * error, scale)
        for (what, value, error), scale in zip(found.effects(), (1.0, *found.scales.tolist()), strict=True)
    ]
    draws = None
    if resamples and len(found.crowd) > 1:
        # One Newton step from the estimate (Kline and Santos, 2012): rows with measures cannot be pooled as counts can.
        rng = settings.rng(name, "bootstrap")
        grouped = bootstrap.deal(found.scores[found.scores.any(1)], rng)
        draws = found.theta + (bootstrap.resample_voters(grouped, resamples, rng) @ found.bread)[:, :m]
    covariance = found.covariance[:m, :m]
    return Solved(as_fit(found), found.bread, found.scores, covariance, effective, draws, effects, found.missing)

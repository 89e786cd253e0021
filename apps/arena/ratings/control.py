"""Ratings with looks held equal: what models would score if sides, sizes and styles did not differ.

The log-odds of A become theta_a - theta_b + gamma + beta^T z. gamma is the pull of the side A. z holds the differences of
measures (A's minus B's: megapixels, luminance, length ...), each divided by its standard deviation over the votes, so that
beta is the log-odds of one typical difference. It is maximum likelihood without a penalty. Votes of which a measure is
unknown are left out and counted.

A controlled board answers another question than the plain one. Where a model is better *because* it draws sharper images,
control takes that away from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.arena.ratings.davidson import Moments, Ties, moments
from apps.arena.ratings.fit import SEPARATED, Counts, Fit, fit, told_apart
from apps.arena.ratings.intervals import sandwich
from apps.arena.ratings.table import BOTH_BAD, TIE, VoteTable
from palate.errors import UserError, unknown

_STEPS = 60


@dataclass(frozen=True)
class Controlled:
    """d parameters in the order theta (m), log_nu under "davidson", side, beta (K).

    theta: (m,), mean 0. side: log-odds that A gains. beta: (K,), log-odds per standard deviation of a difference.
    scales: (K,), those standard deviations, in the measures' units. bread: (d, d), the inverse information.
    scores: (voters, d), summed by voter. covariance: (d, d), clustered by voter. crowd: votes used of each who cast one.
    missing: votes left out because a measure was unknown.
    """

    theta: np.ndarray
    log_nu: float
    side: float
    beta: np.ndarray
    names: tuple[str, ...]
    scales: np.ndarray
    bread: np.ndarray
    scores: np.ndarray
    covariance: np.ndarray
    crowd: np.ndarray
    ties: Ties
    missing: int

    def effects(self) -> list[tuple[str, float, float]]:
        """Return (name, log-odds, standard error) of the side, then of each measure."""
        spread = np.sqrt(np.diag(self.covariance))
        return [
            (name, float(value), float(error))
            for name, value, error in zip(
                ("side", *self.names),
                (self.side, *self.beta),
                spread[len(spread) - 1 - len(self.names) :],
                strict=True,
            )
        ]


def control(votes: VoteTable, names: Sequence[str], *, ties: Ties = "half") -> Controlled:
    """Return the ratings with side and the named measures controlled.

    UserError for a measure that the votes lack or that never differs, or that cannot be told from the models (each model
    always the same), and where ratings are infinite.
    """
    columns = [_column(votes, name) for name in names]
    z = votes.measures_a[:, columns] - votes.measures_b[:, columns]
    rows = (votes.outcome != BOTH_BAD) & np.isfinite(z).all(1)
    missing = int(np.count_nonzero((votes.outcome != BOTH_BAD) & ~rows))
    a, b, outcome, voter = (
        x[rows].astype(np.int64) for x in (votes.model_a, votes.model_b, votes.outcome, votes.voter)
    )
    z = z[rows]
    if not len(z):
        raise UserError(f"None of {len(votes)} votes has all of the measures {', '.join(names)}.")
    scales = np.sqrt((z * z).mean(0))  # about 0, not the mean: exchanging the sides must not matter
    if np.any(scales <= 1e-12):
        raise UserError(f"The measure '{names[int(np.argmin(scales))]}' is the same on both sides of every vote.")
    z = z / scales

    m, davidson = len(votes.models), ties == "davidson"
    tables = np.bincount((a * m + b) * BOTH_BAD + outcome, minlength=m * m * BOTH_BAD).reshape(m, m, BOTH_BAD)
    first = fit(Counts.of_cells(tables), ties=ties)
    theta, log_nu, effects = first.theta, float(first.log_nu), np.zeros(1 + z.shape[1])
    x = np.column_stack([np.ones(len(z)), z])
    credit, tied = np.array([1.0, 0.0, 0.5])[outcome], outcome == TIE
    for _ in range(_STEPS):
        now = moments(theta[a] - theta[b] + x @ effects, log_nu, ties)
        u, v = credit - now.mean, tied - now.tie
        pull = [np.bincount(a, u, m) - np.bincount(b, u, m), [v.sum()] if davidson else [], u @ x]
        gradient = np.concatenate(pull)
        information = _information(a, b, x, now, m, davidson)
        if not told_apart(information):
            raise UserError(
                f"The side and {', '.join(names) or 'the models'} cannot be told apart from each other or from the models. "
                "Control fewer measures."
            )
        if np.abs(gradient).max() <= 1e-9 * len(z):
            break
        step = np.linalg.solve(information, gradient)
        delta = step[a] - step[b] + x @ step[m + davidson :]
        change = 2 * np.abs(delta).max() + (abs(step[m]) if davidson else 0.0) + 1e-300
        step *= np.log1p(change) / change
        theta, effects = theta + step[:m], effects + step[m + davidson :]
        log_nu += step[m] if davidson else 0.0
    else:
        raise UserError(f"The controlled ratings did not settle in {_STEPS} steps; control fewer measures.")
    if np.abs(effects).max() > SEPARATED:
        raise UserError("The side or a measure explains every vote that the models leave open. Control fewer measures.")
    voters = len(votes.voters)
    by_model = np.bincount(voter * m + a, u, voters * m) - np.bincount(voter * m + b, u, voters * m)
    parts = [by_model.reshape(voters, m)]
    if davidson:
        parts.append(np.bincount(voter, v, voters)[:, None])
    parts += [np.bincount(voter, u * column, voters)[:, None] for column in x.T]
    scores = np.concatenate(parts, axis=1)
    centre = np.eye(len(information))
    centre[:m, :m] -= 1 / m
    bread = centre @ np.linalg.inv(information) @ centre
    each = np.bincount(voter)
    return Controlled(
        theta - theta.mean(),
        log_nu,
        float(effects[0]),
        effects[1:],
        tuple(names),
        scales,
        bread,
        scores,
        sandwich(bread, scores, int(np.count_nonzero(each))),
        each[each > 0],
        ties,
        missing,
    )


def as_fit(controlled: Controlled) -> Fit:
    """Return the plain fit with these ratings, sides equal: what two models would do if nothing else differed."""
    m = len(controlled.theta)
    nothing = np.zeros(())
    return Fit(controlled.theta, nothing + controlled.log_nu, nothing, np.eye(m), controlled.ties, False)


def _column(votes: VoteTable, name: str) -> int:
    if name not in votes.covariates:
        raise UserError(unknown("measure of the votes", name, votes.covariates))
    return votes.covariates.index(name)


def _information(a: np.ndarray, b: np.ndarray, x: np.ndarray, now: Moments, m: int, davidson: bool) -> np.ndarray:
    """Return minus the second derivative, (d, d), with the mean of theta held."""
    weights = np.bincount(a * m + b, now.variance, m * m).reshape(m, m)
    degree = weights.sum(0) + weights.sum(1)
    d = m + davidson + x.shape[1]
    out = np.zeros((d, d))
    out[:m, :m] = np.diag(degree) - weights - weights.T + degree.sum() / m**2
    rest = slice(m + davidson, d)
    weighted = x * now.variance[:, None]
    out[rest, rest] = x.T @ weighted
    across = np.stack([np.bincount(a, column, m) - np.bincount(b, column, m) for column in weighted.T], axis=1)
    out[:m, rest], out[rest, :m] = across, across.T
    if davidson:
        out[m, m] = (now.tie * (1 - now.tie)).sum()
        out[:m, m] = out[m, :m] = np.bincount(a, now.covariance, m) - np.bincount(b, now.covariance, m)
        out[m, rest] = out[rest, m] = now.covariance @ x
    return out

"""Ratings by Newton's method on counts: one board, or a thousand resampled ones at a time.

A vote enters through three (m, m) tables only, row = model shown as A, column = B, so that a million votes cost as much
as a thousand. The log-likelihood is concave; each step is shortened to ln(1 + d)/d of Newton's, with d the largest change
of a log-odds, which converges from anywhere without a line search (Sun and Tran-Dinh, 2019, generalised self-concordance
with nu = 2) and is Newton's own step near the end.

There is no hidden shrinkage. An estimate can be infinite, though: a model that won every vote, or a group that nobody beat
(`comparability.py` says when). That is refused, unless `prior` bounds it: every model is then given that many votes won,
and as many lost, against an imagined model of rating 0. `WEAK_PRIOR`, half a vote each way, is what the board uses where
it must, and it says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from apps.arena.ratings.comparability import bounded
from apps.arena.ratings.davidson import Moments, Ties, check_ties, moments
from apps.arena.ratings.table import BOTH_BAD, TIE, A
from palate.errors import UserError

WEAK_PRIOR = 0.5
ELO_PER_LOGIT = 400 / math.log(10)  # 173.72
ELO_CENTRE = 1000.0
_STEPS = 60
SEPARATED = 20.0  # log-odds that no number of votes can show: an estimate on its way to infinity
_TOLERANCE = 1e-11  # of the votes: largest derivative at the end


@dataclass(frozen=True)
class Counts:
    """Votes by the models shown as A (row) and B (column), each (..., m, m); leading axes are boards fitted together.

    credit: A's wins plus half of the ties. decided: wins of either and ties. ties: ties.
    """

    credit: np.ndarray
    decided: np.ndarray
    ties: np.ndarray

    @classmethod
    def of_cells(cls, cells: np.ndarray) -> Counts:
        """Return the counts for numbers of votes by (..., A, B, outcome), outcomes A, B, TIE and maybe BOTH_BAD."""
        cells = np.asarray(cells, dtype=float)
        decided = cells[..., :BOTH_BAD].sum(-1)
        return cls(cells[..., A] + cells[..., TIE] / 2, decided, cells[..., TIE])


@dataclass(frozen=True)
class Fit:
    """Estimates for (...) boards of m models; d parameters in the order theta, then log_nu and side where estimated.

    theta: (..., m), natural log-odds, mean 0. 173.72 of Elo are one of these.
    log_nu: (...), Davidson's tie parameter; -inf where ties count half.
    side: (...), advantage of being shown as A, log-odds; 0 where not estimated.
    information: (..., d, d), minus the second derivative of the log-likelihood with its prior. Without a prior it also
        holds the mean of theta, which the likelihood leaves free.
    """

    theta: np.ndarray
    log_nu: np.ndarray
    side: np.ndarray
    information: np.ndarray
    ties: Ties
    has_side: bool

    @property
    def delta(self) -> np.ndarray:
        """(..., m, m): log-odds of the row's model, shown as A, against the column's."""
        return self.theta[..., :, None] - self.theta[..., None, :] + self.side[..., None, None]

    def moments(self) -> Moments:
        """Return the moments of a vote by (..., A, B)."""
        return moments(self.delta, self.log_nu[..., None, None], self.ties)

    def elo(self) -> np.ndarray:
        """Return the ratings on Elo's scale, (..., m): mean 1000, and 400 points are odds of ten to one."""
        return ELO_CENTRE + ELO_PER_LOGIT * self.theta

    def bread(self) -> np.ndarray:
        """Return the inverse information with theta's mean held at 0, (..., d, d); its theta block is the covariance of
        theta if votes were independent and the model true."""
        m = self.theta.shape[-1]
        centre = np.eye(self.information.shape[-1])
        centre[:m, :m] -= 1 / m
        return centre @ np.linalg.inv(self.information) @ centre


def fit(
    counts: Counts,
    *,
    ties: Ties = "half",
    side: bool = False,
    prior: np.ndarray | float = 0.0,
    start: Fit | None = None,
) -> Fit:
    """Return the maximum-likelihood ratings for one or many boards.

    ties: "half" is Bradley-Terry with a tie as half a win each; "davidson" estimates how likely ties are.
    side: also estimate the advantage of the side A, the same for all models.
    prior: votes won and lost against an imagined model of rating 0, for every model; (...) for one per board.
    start: a near estimate, which saves steps; it broadcasts over boards.

    UserError where an estimate is infinite and no prior bounds it, and under "davidson" where there is no tie or nothing
    but ties.
    """
    check_ties(ties)
    m = counts.credit.shape[-1]
    boards = counts.credit.shape[:-2]
    davidson = ties == "davidson"
    weak = np.broadcast_to(np.asarray(prior, dtype=float), boards)
    theta, log_nu, gamma = np.zeros((*boards, m)), np.zeros(boards), np.zeros(boards)
    if start is not None:
        theta, log_nu, gamma = theta + start.theta, log_nu + start.log_nu, gamma + start.side
    elif davidson:
        log_nu = _first_log_nu(counts)
    if np.any((weak <= 0) & ~bounded(counts.credit, counts.decided, counts.ties, ties)):
        raise UserError(
            "These votes have no finite ratings: some models were never compared with the others, or won or lost every "
            "vote against them. Collect more votes, or give a prior, such as 0.5 votes won and lost against an imagined "
            "model."
        )
    scale = 1 + counts.decided.sum((-1, -2))
    for _ in range(_STEPS):
        now = moments(theta[..., :, None] - theta[..., None, :] + gamma[..., None, None], log_nu[..., None, None], ties)
        gradient = _gradient(counts, now, theta, weak, davidson, side)
        information = _information(counts, now, theta, weak, davidson, side)
        if side and not told_apart(information):
            raise UserError("The side cannot be told from the models: show each pair both ways round, or leave it out.")
        if np.all(np.abs(gradient).max(-1) <= _TOLERANCE * scale):
            break
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        change = np.ptp(step[..., :m], axis=-1) + np.abs(step[..., m:]).sum(-1) + 1e-300
        step *= (np.log1p(change) / change)[..., None]
        theta = theta + step[..., :m]
        if davidson:
            log_nu = log_nu + step[..., m]
        if side:
            gamma = gamma + step[..., -1]
    else:
        raise UserError(f"The ratings did not settle in {_STEPS} steps.")
    if np.any(np.abs(gamma) > SEPARATED):
        raise UserError("One side won every vote that the models leave open, so its advantage has no finite estimate.")
    return Fit(
        theta - theta.mean(-1, keepdims=True),
        log_nu if davidson else np.full(boards, -np.inf),
        gamma,
        information,
        ties,
        side,
    )


def told_apart(information: np.ndarray) -> bool:
    """Return whether no parameter of (..., d, d) information is a mixture of others."""
    spread = np.sqrt(np.diagonal(information, axis1=-2, axis2=-1))
    if not np.all(spread > 0):
        return False
    correlation = information / (spread[..., :, None] * spread[..., None, :])
    return bool(np.all(np.linalg.eigvalsh(correlation)[..., 0] > 1e-9))


def _first_log_nu(counts: Counts) -> np.ndarray:
    """Return Davidson's log_nu if all models were equal: P(tie) = nu / (2 + nu)."""
    ties, decided = counts.ties.sum((-1, -2)), counts.decided.sum((-1, -2))
    if np.any(ties <= 0) or np.any(ties >= decided):
        raise UserError(
            "Davidson's model needs ties and votes with a winner, and one of the two is missing. Give ties='half'."
        )
    return np.log(2 * ties / (decided - ties))


def _gradient(
    counts: Counts, now: Moments, theta: np.ndarray, prior: np.ndarray, davidson: bool, side: bool
) -> np.ndarray:
    """Return the derivative of the log-likelihood, (..., d)."""
    residual = counts.credit - counts.decided * now.mean
    parts = [residual.sum(-1) - residual.sum(-2) + prior[..., None] * (1 - 2 * expit(theta))]
    if davidson:
        parts.append((counts.ties - counts.decided * now.tie).sum((-1, -2))[..., None])
    if side:
        parts.append(residual.sum((-1, -2))[..., None])
    return np.concatenate(parts, axis=-1)


def _information(
    counts: Counts, now: Moments, theta: np.ndarray, prior: np.ndarray, davidson: bool, side: bool
) -> np.ndarray:
    """Return `Fit.information`, (..., d, d)."""
    m = theta.shape[-1]
    d = m + davidson + side
    weight = counts.decided * now.variance
    out = np.zeros((*theta.shape[:-1], d, d))
    strength = expit(theta)
    here = np.arange(m)
    degree = weight.sum(-1) + weight.sum(-2)
    held = np.where(prior > 0, 0.0, degree.sum(-1) / m**2)  # any number: all gradients are orthogonal to a common shift
    out[..., :m, :m] = held[..., None, None] - weight - np.swapaxes(weight, -1, -2)
    out[..., here, here] += degree + 2 * prior[..., None] * strength * (1 - strength)
    if side:
        out[..., :m, -1] = out[..., -1, :m] = weight.sum(-1) - weight.sum(-2)
        out[..., -1, -1] = weight.sum((-1, -2))
    if davidson:
        shared = counts.decided * now.covariance
        out[..., :m, m] = out[..., m, :m] = shared.sum(-1) - shared.sum(-2)
        out[..., m, m] = (counts.decided * now.tie * (1 - now.tie)).sum((-1, -2))
        if side:
            out[..., m, -1] = out[..., -1, m] = shared.sum((-1, -2))
    return out

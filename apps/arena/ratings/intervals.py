"""How sure ratings are: a covariance that knows voters, simultaneous intervals, and what they say about ranks.

Votes of one voter share a taste, so that a formula for independent votes promises too much. The sandwich clustered by
voter, V = H^-1 B H^-1 with B = G/(G-1) sum_g s_g s_g^T over the G voters' summed scores (Liang and Zeger, 1986), needs no
such promise, nor that the model is exactly true. Student's t allows for few voters; its degrees of freedom are one less than
the *effective* voters, (sum n_g)^2 / sum n_g^2, as one busy voter does not make a crowd.

A rank is a statement about all pairs at once. So the intervals behind ranks are simultaneous: c is the quantile of
max |Z_i - Z_j| / se_ij over all pairs (sup-t), and a model's best rank is one more than the number of models surely above
it (Mogstad, Romano, Shaikh and Wilhelm, 2024). All rank intervals of a board are then right together at the level stated.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from apps.arena.ratings.fit import Fit
from apps.arena.ratings.table import BOTH_BAD, TIE

_DRAWS = 8192


def voter_scores(
    fit: Fit, model_a: np.ndarray, model_b: np.ndarray, outcome: np.ndarray, voter: np.ndarray, voters: int
) -> np.ndarray:
    """Return each voter's summed score, (G, d): the derivative of their votes' log-likelihood at a single fit.

    The four columns hold N votes as in `VoteTable`; both-bad votes add nothing.
    """
    m = fit.theta.shape[-1]
    now = fit.moments()
    credit = np.array([1.0, 0.0, 0.5])
    residual = np.zeros((m, m, 4))
    residual[..., :BOTH_BAD] = credit - now.mean[..., None]
    cell = (model_a.astype(np.int64) * m + model_b) * 4 + outcome
    u = residual.ravel()[cell]
    home = voter.astype(np.int64) * m
    size = voters * m
    theta = np.bincount(home + model_a, u, size) - np.bincount(home + model_b, u, size)
    parts = [theta.reshape(voters, m)]
    if fit.ties == "davidson":
        excess = np.zeros((m, m, 4))
        excess[..., :BOTH_BAD] = (np.arange(3) == TIE) - now.tie[..., None]
        parts.append(np.bincount(voter, excess.ravel()[cell], voters)[:, None])
    if fit.has_side:
        parts.append(np.bincount(voter, u, voters)[:, None])
    return np.concatenate(parts, axis=1)


def sandwich(
    bread: np.ndarray, scores: np.ndarray, groups: int, *, prior: np.ndarray | None = None, few: int = 2
) -> np.ndarray:
    """Return the covariance of the estimates, (d, d), clustered by voter; infinite for G < 2.

    bread: (d, d), the inverse information. scores: (G or more, d), zero for those without a vote. groups: G.
    prior: (d,), the prior's own information: votes that nobody cast are no evidence, so they count as noise.
    few: below this number of voters per parameter, B is too poor to be trusted in every direction, and the spread is held
        to be at least that of independent votes.
    """
    if groups < 2:
        return np.diag(np.full(len(bread), math.inf))
    meat = groups / (groups - 1) * scores.T @ scores
    if prior is not None:
        meat = meat + np.diag(prior)
    clustered = bread @ meat @ bread
    return _at_least(clustered, bread) if groups < few * len(bread) else clustered


def _at_least(covariance: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Return `covariance`, raised to `least` in each direction (of `least`'s own metric) in which it is smaller."""
    values, vectors = np.linalg.eigh((least + least.T) / 2)
    kept = values > 1e-12 * values.max()
    root, back = vectors[:, kept] * np.sqrt(values[kept]), vectors[:, kept] / np.sqrt(values[kept])
    effect, turn = np.linalg.eigh(back.T @ covariance @ back)
    turned = root @ turn
    return (turned * np.maximum(effect, 1.0)) @ turned.T


def contrasts(covariance: np.ndarray) -> np.ndarray:
    """Return the standard error of theta_i - theta_j, (m, m), from the covariance of theta."""
    variance = np.diag(covariance)
    if not np.isfinite(variance).all():
        return np.where(np.eye(len(variance), dtype=bool), 0.0, math.inf)
    return np.sqrt(np.maximum(variance[:, None] + variance[None, :] - covariance - covariance.T, 0.0))


def effective_voters(votes: np.ndarray) -> float:
    """Return (sum n_g)^2 / sum n_g^2 for the number of votes of each voter; 0 without votes."""
    squares = float((votes.astype(float) ** 2).sum())
    return float(votes.sum()) ** 2 / squares if squares else 0.0


def student(level: float, voters: float) -> float:
    """Return the two-sided quantile of Student's t for this number of (effective) voters; infinite up to 1."""
    return float(stats.t.ppf(0.5 + level / 2, voters - 1)) if voters > 1 else math.inf


def sup_t(covariance: np.ndarray, voters: float, level: float, rng: np.random.Generator, *, pairs: bool) -> float:
    """Return c such that all |error| <= c * se hold together with probability `level`.

    covariance: (m, m) of theta. pairs: over all differences of two models, else over the models themselves. The errors
    are drawn as multivariate t with `voters` - 1 degrees of freedom; with 8192 draws c is known to about 1 %.
    """
    m = len(covariance)
    if voters <= 1 or not np.isfinite(covariance).all():
        return math.inf
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    draws = rng.standard_normal((_DRAWS, m)) @ root.T
    if pairs:
        left, right = np.triu_indices(m, 1)
        error, scale = draws[:, left] - draws[:, right], contrasts(covariance)[left, right]
    else:
        error, scale = draws, np.sqrt(np.maximum(np.diag(covariance), 0.0))
    seen = scale > 0
    if not seen.any():
        return student(level, voters)
    largest = np.abs(error[:, seen] / scale[seen]).max(1)
    largest /= np.sqrt(rng.chisquare(voters - 1, _DRAWS) / (voters - 1))
    return max(float(np.quantile(largest, level)), student(level, voters))


def rank_bounds(theta: np.ndarray, covariance: np.ndarray, critical: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the best and the worst rank of each model, two (m,) int arrays, 1 for the top.

    critical: `sup_t(..., pairs=True)`.
    """
    m = len(theta)
    if not math.isfinite(critical):
        return np.ones(m, dtype=int), np.full(m, m)
    surely_above = theta[:, None] - theta[None, :] > critical * contrasts(covariance)
    return 1 + surely_above.sum(0), m - surely_above.sum(1)

"""Two models of one vote, as moments of the credit y that A earns: 1 for a win, 1/2 for a tie, 0 for a loss.

Both are exponential families in delta = theta_a - theta_b (natural logarithm of odds), and y is their statistic: a vote's
score in delta is y - E[y] under either, its information Var[y]. So one Newton iteration fits both (`fit.py`).

- Bradley-Terry, ties as half a win (Bradley and Terry, 1952): E[y] = sigma(delta). A tie counts like half a vote for each,
  which pulls models together: gaps shrink by about the share of votes that are not ties.
- Davidson (1970): P(A wins) : P(B wins) : P(tie) = e^(delta/2) : e^(-delta/2) : nu. A tie is an outcome of its own, and
  delta remains the log-odds of A against B when somebody wins.

Both-bad is in neither: it says that neither is good, not that they are equal.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy.special import expit

from palate.errors import UserError, unknown

Ties = Literal["half", "davidson"]


class Moments(NamedTuple):
    """Of one vote: mean and variance of the credit y, probability of a tie, covariance of y with "it is a tie"."""

    mean: np.ndarray
    variance: np.ndarray
    tie: np.ndarray
    covariance: np.ndarray


def moments(delta: np.ndarray, log_nu: np.ndarray | float, ties: Ties) -> Moments:
    """Return the moments of votes at `delta`; `log_nu` broadcasts against it and is not read under "half"."""
    if ties == "half":
        mean = expit(delta)
        zero = np.zeros_like(mean)
        return Moments(mean, mean * (1 - mean), zero, zero)
    # Divided by the larger of e^(delta/2) and e^(-delta/2), so that nothing overflows.
    small = np.exp(-np.abs(delta))
    nu = np.exp(log_nu) * np.sqrt(small)
    whole = 1 + small + nu
    tie = nu / whole
    margin = np.copysign((1 - small) / whole, delta)  # P(A wins) - P(B wins)
    return Moments((1 + margin) / 2, (1 - tie - margin * margin) / 4, tie, -tie * margin / 2)


def check_ties(ties: str) -> None:
    """Raise UserError unless `ties` names a rule."""
    if ties not in get_args(Ties):
        raise UserError(unknown("rule for ties", str(ties), get_args(Ties)))

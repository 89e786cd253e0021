"""Which two models meet next: where a vote is most likely to settle an order that is still open.

Three rules are mixed, and the probability of the drawn pair, over all of them, goes with the battle:

- ambiguity: weight Phi(-|delta|/s) log(1 + p(1-p) s^2), with delta the difference of two ratings, s its standard error
  and p the probability that the first wins: the chance that the order is wrong, times what one vote tells about it.
- newcomer: one model with few battles, each such model equally often; its opponent by ambiguity.
- floor: any pair that is allowed, equally often, so that no pair is ever forgotten and every probability is positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit, log_ndtr

from apps.arena.ratings.intervals import contrasts
from apps.arena.ratings.tally import Standing
from palate import randomness
from palate.errors import UserError

Rule = Literal["ambiguity", "newcomer", "floor"]


@dataclass(frozen=True)
class Choice:
    """A drawn battle.

    pair: names of the models (shown as A, shown as B); a fair keyed coin chose the sides.
    probability: of this pair, in either order, over all rules. Store it with the battle.
    rule: the one that drew it.
    """

    pair: tuple[str, str]
    probability: float
    rule: Rule


@dataclass(frozen=True)
class Mixture:
    """The rules in play: share of each, summing to 1, and its probabilities of pairs, (m, m), nonzero above the diagonal
    only and summing to 1."""

    shares: dict[Rule, float]
    pairs: dict[Rule, np.ndarray]

    @property
    def probability(self) -> np.ndarray:
        """(m, m): of each pair over all rules, above the diagonal; sums to 1."""
        return np.sum([share * self.pairs[rule] for rule, share in self.shares.items()], axis=0)


def choose_pair(
    standing: Standing,
    key: str,
    *,
    seed: int = 0,
    allowed: np.ndarray | None = None,
    floor: float = 0.1,
    newcomer_share: float = 0.2,
    newcomer_battles: int = 50,
) -> Choice:
    """Return the next battle, a function of its arguments alone.

    key: what is drawn, for example the battle's id. The other parameters are those of `mixture`.
    """
    mixed = mixture(
        standing, allowed=allowed, floor=floor, newcomer_share=newcomer_share, newcomer_battles=newcomer_battles
    )
    rules = list(mixed.shares)
    rule = rules[_draw(np.array(list(mixed.shares.values())), randomness.uniform(seed, key, 0, "matchmaking rule"))]
    drawn = _draw(mixed.pairs[rule].ravel(), randomness.uniform(seed, key, 0, "matchmaking pair"))
    i, j = divmod(drawn, len(standing.models))
    pair = standing.models[i], standing.models[j]
    if randomness.uniform(seed, key, 0, "matchmaking sides") < 0.5:
        pair = pair[::-1]
    return Choice(pair, float(mixed.probability[i, j]), rule)


def mixture(
    standing: Standing,
    *,
    allowed: np.ndarray | None = None,
    floor: float = 0.1,
    newcomer_share: float = 0.2,
    newcomer_battles: int = 50,
) -> Mixture:
    """Return how the next pair is drawn.

    allowed: (m, m) bool, symmetric, in the order of `standing.models`: pairs that caps, exclusions and prompts permit;
        None permits all. UserError if none is left.
    floor: share of the uniform rule. newcomer_share: share of the newcomer rule while some models have fewer than
        `newcomer_battles` battles and others do not; else it falls to ambiguity.
    """
    if not (0 <= floor <= 1 and 0 <= newcomer_share <= 1 and floor + newcomer_share <= 1):
        raise UserError(
            f"The shares of rules lie between 0 and 1 and sum to at most 1; got floor={floor}, "
            f"newcomer_share={newcomer_share}."
        )
    m = len(standing.models)
    if allowed is not None and allowed.shape != (m, m):
        raise UserError(f"`allowed` has shape {allowed.shape}; expected ({m}, {m}), a row and a column per model.")
    open_pairs = np.triu(np.ones((m, m), dtype=bool) if allowed is None else allowed.astype(bool), 1)
    if not open_pairs.any():
        raise UserError("No pair of models is left to compare. Add models or prompts, or lift a cap.")
    weight = ambiguity(standing)
    either = open_pairs | open_pairs.T
    new = (standing.battles.sum(1) < newcomer_battles) & either.any(1)
    pairs: dict[Rule, np.ndarray] = {
        "floor": open_pairs / open_pairs.sum(),
        "ambiguity": _normalised(np.where(open_pairs, weight, -np.inf)),
    }
    shares: dict[Rule, float] = {"floor": floor, "ambiguity": 1 - floor}
    if new.any() and not new.all() and newcomer_share > 0:
        lines = [_normalised(np.where(either[i], weight[i], -np.inf)) for i in np.flatnonzero(new)]
        drawn = np.zeros((m, m))
        drawn[new] = np.array(lines) / len(lines)
        pairs["newcomer"] = np.triu(drawn + drawn.T, 1)
        shares = {"floor": floor, "newcomer": newcomer_share, "ambiguity": 1 - floor - newcomer_share}
    return Mixture(shares, pairs)


def ambiguity(standing: Standing) -> np.ndarray:
    """Return the logarithm of the rule's weight for each pair, (m, m), symmetric."""
    delta = standing.theta[:, None] - standing.theta[None, :]
    spread = contrasts(standing.covariance)
    variance = spread * spread
    with np.errstate(divide="ignore", invalid="ignore"):
        wrong = log_ndtr(np.where(spread > 0, -np.abs(delta) / spread, -np.inf))
        return wrong + np.log(np.log1p(expit(delta) * expit(-delta) * variance))


def _normalised(log_weight: np.ndarray) -> np.ndarray:
    """Return probabilities proportional to exp(log_weight). Logarithms: no pair underflows to never."""
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


def _draw(weights: np.ndarray, uniform: float) -> int:
    """Return the position that `uniform`, in [0, 1), falls on; never one of weight 0."""
    edges = np.cumsum(weights)
    return int(np.searchsorted(edges, uniform * edges[-1], side="right"))

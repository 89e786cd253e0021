"""From scores to probabilities: a temperature and a share of ties, fitted on votes.

Davidson's model (1970) of a vote between two images whose scores differ by g, with temperature T and tie strength nu:

    P(first) : P(tie) : P(second) = exp(g / 2T) : nu : exp(-g / 2T)

nu = 0 is Bradley and Terry's model. Its parameters 1/T and log nu are those of a multinomial logit, so the likelihood of
votes has one maximum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from palate.errors import UserError
from rewards.protocol import ImageLike, ScoreBatch, Scorer

if TYPE_CHECKING:
    from palate.records import Pair

FILE = "calibration.json"
"""Name of a calibration beside the weights that it belongs to."""
_PRIOR = (
    10.0  # The slope 1/T, per standard deviation of the gaps, has a normal prior of this width: finite if all agree.
)


@dataclass(frozen=True)
class Calibration:
    """What turns differences of a scorer's scores into probabilities."""

    temperature: float
    """T > 0, in the scorer's unit; infinite for a scorer that does not know better than a coin."""
    tie: float
    """nu >= 0: P(tie) is nu / (2 + nu) for images of equal scores."""
    unit: str = ""
    """Unit of the scores that it was fitted on."""
    weights: str = ""
    """Hash of the scorer's weights; "" where the file lies beside them."""
    votes: float = 0.0
    """How many votes it rests on."""
    prompts: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.tie >= 0 and math.isfinite(self.tie)):
            raise UserError(f"A calibration has a temperature above 0 and a finite tie strength from 0; got {self}.")

    def probabilities(self, gaps: np.ndarray) -> np.ndarray:
        """Return P(first, tie, second) for score differences first - second: (..., 3) for (...); NaN stays NaN."""
        from scipy.special import softmax

        half = np.asarray(gaps, dtype=float) / (2 * self.temperature)
        with np.errstate(divide="ignore"):
            tie = np.full_like(half, np.log(self.tie))
        return softmax(np.stack([half, tie, -half], axis=-1), axis=-1)

    def save(self, path: str | Path) -> None:
        """Write it as JSON; an infinite temperature is null."""
        values = asdict(self) | {"temperature": self.temperature if math.isfinite(self.temperature) else None}
        Path(path).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote. UserError where it cannot be read."""
        try:
            values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            values["temperature"] = math.inf if values["temperature"] is None else values["temperature"]
            return cls(**values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no calibration ({error}). `palate bench-rewards` writes one.") from error


def fit(
    gaps: Sequence[float] | np.ndarray,
    votes: Sequence[Sequence[float]] | np.ndarray,
    *,
    unit: str = "",
    weights: str = "",
    prompts: int = 0,
) -> Calibration:
    """Return the calibration of greatest likelihood, with a weak prior that keeps the temperature above 0.

    gaps: (N,) score of the first image less that of the second; pairs with NaN are left out.
    votes: (N, 3) votes for the first image, ties, and votes for the second; need not be whole numbers (`tally`).

    A scorer that is right less often than not gets an infinite temperature, so that every pair is a coin toss.
    UserError where there is nothing to fit on.
    """
    from scipy.optimize import minimize

    gap, table = np.asarray(gaps, dtype=float), np.asarray(votes, dtype=float).reshape(-1, 3)
    if gap.shape != table.shape[:1]:
        raise UserError(f"Each of {len(gap)} pairs needs its votes; got {len(table)} rows of them.")
    known = np.isfinite(gap)
    gap, table = gap[known], table[known]
    total = float(table.sum())
    if not total:
        raise UserError("There are no votes to fit a calibration on.")
    tied = float(table[:, 1].sum())
    scale = float(gap.std()) or float(np.abs(gap).max()) or 1.0
    x = gap / scale
    if tied == total:
        raise UserError(f"All of {total:g} votes are ties, so nothing says how scores become preferences.")

    def cost(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log posterior and its gradient in (scale / T, log nu); without ties, in the first alone."""
        slope, log_tie = parameters[0], parameters[1] if tied else -np.inf
        logits = np.stack([slope * x / 2, np.full_like(x, log_tie), -slope * x / 2], axis=-1)
        peak = logits.max(axis=-1, keepdims=True)
        log_p = logits - peak - np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True))
        p, n = np.exp(log_p), table.sum(axis=-1)
        residual = p * n[:, None] - table  # d cost / d logits
        nll = -np.where(table > 0, table * np.where(table > 0, log_p, 0.0), 0.0).sum()
        gradient = [float(((residual[:, 0] - residual[:, 2]) * x / 2).sum() + slope / _PRIOR**2)]
        return float(nll + 0.5 * (slope / _PRIOR) ** 2), np.array(gradient + [float(residual[:, 1].sum())] * bool(tied))

    start = np.array([1.0, math.log(2 * tied / (total - tied))] if tied else [1.0])
    bounds = [(0.0, None)] + [(None, None)] * bool(tied)
    found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-10})
    slope = float(found.x[0])
    return Calibration(
        temperature=scale / slope if slope > 1e-9 else math.inf,
        tie=math.exp(float(found.x[1])) if tied else 0.0,
        unit=unit,
        weights=weights,
        votes=total,
        prompts=prompts,
    )


def tally(pair: Pair) -> tuple[float, float, float]:
    """Return the votes for chosen, ties, and votes for rejected that a pair rests on.

    Pairs from votes (`palate.votes.votes_to_pairs`) keep their counts. Any other pair is one vote: p_chosen = 1/2 is a
    tie, and else p_chosen is the share of the vote that chosen gets.
    """
    wins, decided = pair.meta.get("wins"), pair.meta.get("decided")
    if isinstance(wins, dict) and decided:
        first, second = (float(wins.get(side.id, 0)) for side in (pair.chosen, pair.rejected))
        return first, max(0.0, float(decided) - first - second), second
    return (0.0, 1.0, 0.0) if pair.p_chosen == 0.5 else (pair.p_chosen, 0.0, 1 - pair.p_chosen)


def log_loss(probabilities: np.ndarray, votes: np.ndarray) -> float:
    """Return the mean negative log-likelihood of (N, 3) votes under (N, 3) probabilities, nats a vote."""
    with np.errstate(divide="ignore"):
        return float(
            -np.where(votes > 0, votes * np.log(np.where(votes > 0, probabilities, 1.0)), 0.0).sum() / votes.sum()
        )


@dataclass(frozen=True)
class Reliability:
    """How often the image that a scorer prefers wins, against how often it should. Ties are half a win.

    Bins hold about equal numbers of pairs, in the order of what is predicted. Each array has a value a bin.
    """

    predicted: np.ndarray
    observed: np.ndarray
    votes: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean over votes of |observed - predicted|, in [0, 1]."""
        return float(np.average(np.abs(self.observed - self.predicted), weights=self.votes))


def reliability(probabilities: np.ndarray, votes: np.ndarray, bins: int = 10) -> Reliability:
    """Return the reliability of (N, 3) probabilities under (N, 3) votes, in up to `bins` bins.

    Which image is the first is an accident, so each pair is turned to the side that the scorer prefers: predictions lie
    in [1/2, 1].
    """
    n = votes.sum(axis=-1)
    expected = probabilities[:, 0] + 0.5 * probabilities[:, 1]
    won = (votes[:, 0] + 0.5 * votes[:, 1]) / n
    won = np.where(expected == 0.5, 0.5, won)  # no side is preferred
    turned = expected < 0.5
    expected, won = np.where(turned, 1 - expected, expected), np.where(turned, 1 - won, won)
    order = np.argsort(expected, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    return Reliability(
        predicted=np.array([np.average(expected[part], weights=n[part]) for part in parts]),
        observed=np.array([np.average(won[part], weights=n[part]) for part in parts]),
        votes=np.array([n[part].sum() for part in parts]),
    )


@dataclass(frozen=True)
class Preference:
    """What a scorer says of K images for one prompt."""

    scores: np.ndarray
    """(K,) scores; NaN where an image could not be scored."""
    wins: np.ndarray
    """(K, K) probability that image i is preferred to j; NaN on the diagonal. wins + wins.T + ties = 1."""
    ties: np.ndarray
    """(K, K) probability that the two are called a tie."""
    best: np.ndarray
    """(K,) probability that an image is chosen among all (Luce): the softmax of scores / temperature."""
    failures: dict[int, str]
    """Image -> why it has no score; its probabilities are NaN."""


class Calibrated:
    """A scorer that also gives probabilities. It scores as the scorer does, and is one."""

    def __init__(self, scorer: Scorer, calibration: Calibration) -> None:
        if calibration.unit and calibration.unit != scorer.unit:
            raise UserError(
                f"The calibration is for scores in the unit {calibration.unit!r}, and {scorer.name} gives {scorer.unit!r}. "
                "Load the scorer as it was when it was calibrated, or calibrate it again (palate bench-rewards)."
            )
        self.scorer, self.calibration = scorer, calibration
        self.name, self.unit = scorer.name, scorer.unit

    def score(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> ScoreBatch:
        """Return the score of each row; see `rewards.protocol.Scorer`."""
        return self.scorer.score(prompts, images)

    def compare(self, prompt: str, images: Sequence[ImageLike]) -> Preference:
        """Return the probabilities that people prefer one of two or more images for one prompt."""
        return compare(self.scorer, prompt, images, self.calibration)


def load_calibrated(
    name_or_path: str | Path | Scorer, calibration: str | Path | None = None, **options: Any
) -> Calibrated:
    """Return a scorer with its calibration, so that it can `compare`.

    name_or_path, options: as for `load_scorer`. calibration: a file that `palate bench-rewards` wrote; None takes the
    one in the scorer's folder, where `rewards.train` writes it.
    """
    from rewards.loading import load_scorer

    beside = Path(name_or_path) / FILE if isinstance(name_or_path, str | Path) else None
    found = calibration or beside
    if found is None or (calibration is None and not Path(found).is_file()):
        raise UserError(
            f"{name_or_path} has no {FILE} beside it. Fit one on votes (palate bench-rewards --scorer ... writes "
            "OUT/calibration/NAME.json) and give its path as calibration=."
        )
    return Calibrated(load_scorer(name_or_path, **options), Calibration.load(found))


def compare(scorer: Scorer, prompt: str, images: Sequence[ImageLike], calibration: Calibration) -> Preference:
    """Return the probabilities that people prefer one of two or more images for one prompt.

    Raises UserError for fewer than two images, and where the calibration was fitted on other weights.
    """
    if len(images) < 2:
        raise UserError(f"compare() needs at least two images; got {len(images)}.")
    batch = scorer.score([prompt] * len(images), list(images))
    if calibration.weights and calibration.weights != batch.weights:
        raise UserError(
            f"The calibration belongs to other weights ({calibration.weights[:8]}) than those of {scorer.name} "
            f"({batch.weights[:8]}). Calibrate it again: palate bench-rewards."
        )
    from scipy.special import softmax

    values = batch.values
    chances = calibration.probabilities(values[:, None] - values[None, :])
    chances[np.eye(len(values), dtype=bool)] = np.nan
    best = np.full(len(values), np.nan)
    if batch.ok.any():
        best[batch.ok] = softmax(values[batch.ok] / calibration.temperature)
    return Preference(values, chances[..., 0], chances[..., 1], best, dict(batch.failures))

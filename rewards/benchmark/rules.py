"""How a scorer's answers are marked. Published accuracies differ in their rules, above all for ties.

A comparison is two images of one ranking. Its label is 1 (people prefer the first), -1 (the second) or 0 (a tie); the
scorer's `lead` is positive where it prefers the first, and 0 where it cannot say. Marks lie in [0, 1].

Which comparisons a rule leaves out depends on labels alone, so that all scorers are marked on the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

THRESHOLDS = tuple(round(0.1 * k, 1) for k in range(11))
"""Thresholds that PickScore's rule chooses from."""


@dataclass(frozen=True)
class Marks:
    """Marks of M observations, (M,), and the ranking that each belongs to, (M,)."""

    values: np.ndarray
    ranking: np.ndarray


def threshold(label: np.ndarray, lead: np.ndarray, ranking: np.ndarray, t: float | np.ndarray = 0.0) -> Marks:
    """PickScore's rule: the scorer calls a tie where |p1 - p0| <= t. A match is 1; 1/2 if exactly one side is a tie.

    lead: p1 - p0, in [-1, 1]. t: one threshold, or one a comparison. Source: 2305.01569 section 4, and
    trainer/scripts/eval_preference_predictor.py of its code, which chooses t of `THRESHOLDS` on validation pairs.
    """
    said = np.where(np.abs(lead) <= t, 0, np.sign(lead))
    return Marks(np.where(said == label, 1.0, np.where((said == 0) != (label == 0), 0.5, 0.0)), ranking)


def inversions(label: np.ndarray, lead: np.ndarray, ranking: np.ndarray) -> Marks:
    """HPDv2's rule: 1 - inversions / pairs of each ranking, averaged over rankings. A tie in the label is never inverted.

    Equal scores count half, where the label is no tie: the code breaks them in the order of the list, which is chance.
    Source: inversion_score in hpsv2/src/training/train.py of HPSv2's code (2306.09341).
    """
    right = np.where(label == 0, 1.0, 0.5 + 0.5 * label * np.sign(lead))
    names, place = np.unique(ranking, return_inverse=True)
    return Marks(np.bincount(place, right) / np.bincount(place), names)


def pooled(label: np.ndarray, lead: np.ndarray, ranking: np.ndarray) -> Marks:
    """ImageReward's rule: all pairs of all rankings in one pool, ties in the label left out, equal scores wrong.

    Source: acc in test.py of ImageReward's code (2304.05977).
    """
    kept = label != 0
    return Marks((np.sign(lead[kept]) == label[kept]).astype(float), ranking[kept])


def decisive(label: np.ndarray, lead: np.ndarray, ranking: np.ndarray) -> Marks:
    """Ties in the label left out, equal scores half right: chance is 1/2 whatever a scorer does."""
    kept = label != 0
    return Marks(0.5 + 0.5 * label[kept] * np.sign(lead[kept]), ranking[kept])


class Rule(NamedTuple):
    """A way of marking, in words for a table's note."""

    mark: Callable[..., Marks]
    words: str


RULES: dict[str, Rule] = {
    "threshold": Rule(
        threshold,
        "PickScore's rule: a tie is called where |p1 - p0| is at most t, and counts half against a preference; t is "
        "chosen on other prompts.",
    ),
    "inversions": Rule(
        inversions,
        "HPDv2's rule: 1 - inversions / pairs, averaged over rankings; ties in the labels are never wrong, equal scores "
        "count half.",
    ),
    "pooled": Rule(
        pooled,
        "ImageReward's rule: pairs of all rankings in one pool, ties in the labels left out, equal scores wrong.",
    ),
    "decisive": Rule(decisive, "Ties in the labels left out, equal scores half right."),
}


def choose_threshold(label: np.ndarray, lead: np.ndarray) -> float:
    """Return the threshold of `THRESHOLDS` with the best mean mark; of equals the smallest."""
    ranking = np.arange(len(label))
    return THRESHOLDS[int(np.argmax([threshold(label, lead, ranking, t).values.mean() for t in THRESHOLDS]))]

"""Figures of yes-or-no questions: accuracy, precision, recall, F1, with intervals clustered by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palate.statistics import ratio, share
from vlm.evaluate.result import Figure


@dataclass(frozen=True)
class Judged:
    """One question: the truth, what the answer was read as ("yes", "no", or "" for neither), and the image."""

    truth: str
    said: str
    image: str


def yes_no_figures(judged: Sequence[Judged], positive: str, part: str = "") -> list[Figure]:
    """Return accuracy, precision, recall and F1 of the class `positive` ("yes" or "no"), and the share of "yes".

    Precision is over the answers that say `positive`, recall over the questions whose truth it is, and F1 is
    2 TP / (2 TP + FP + FN): an answer that says neither is wrong, and never counts as saying `positive`.
    """
    images = [j.image for j in judged]
    says = [int(j.said == positive) for j in judged]
    is_so = [int(j.truth == positive) for j in judged]
    both = [s * t for s, t in zip(says, is_so, strict=True)]
    return [
        Figure("accuracy", share([j.said == j.truth for j in judged], clusters=images), "right of all answers", part),
        Figure("precision", ratio(both, says, clusters=images), f"right of the answers '{positive}'", part),
        Figure(
            "recall", ratio(both, is_so, clusters=images), f"found of the questions whose truth is {positive}", part
        ),
        Figure(
            "F1",
            ratio([2 * b for b in both], [s + t for s, t in zip(says, is_so, strict=True)], clusters=images),
            "harmonic mean of precision and recall",
            part,
        ),
        Figure("yes-ratio", share([j.said == "yes" for j in judged], clusters=images), "share of answers 'yes'", part),
    ]

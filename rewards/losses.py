"""What a scorer learns from: losses of judged rankings. A pair is a ranking of two.

Shapes: B rankings of up to K images. Every loss is one number a ranking, (B,), in float32 or more, and averages over
the ranking's comparisons; how rankings count against each other is said in `OBJECTIVES` and done by
`rewards.data.weights`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from palate.objectives.listwise import plackett_luce as luce
from palate.objectives.scores import RankingScores, at_least_float32

Weighting = Literal["prompt", "comparisons", "even"]


@dataclass(frozen=True)
class Judged:
    """Scores of B rankings, and what people said of them."""

    scores: Tensor
    """(B, K) logits; higher is better. Anything where an image is not there."""
    preference: Tensor
    """(B, K, K) probability that people find i better than j; NaN on the diagonal and where they did not compare."""
    gains: Tensor
    """(B, K) how good people found an image; higher is better, equal is a tie."""
    best: Tensor
    """(B, K) probability that an image is the best of its ranking; 0 where it is not there."""
    mask: Tensor
    """(B, K) bool: the image is there."""
    log_sigma: Tensor | None = None
    """(B, K) log of the scores' standard deviations, for `gaussian`."""


def pickscore(judged: Judged) -> Tensor:
    """KL(p || S(s_i - s_j)): the soft-label cross-entropy less its least value, so that a tie that is met costs 0.

    The gradient is that of the cross-entropy over the two images' logits, ties at (.5, .5). Source: 2305.01569
    (PickScore); its code subtracts ln 2 from the loss of ties, which is this for the labels 0, .5 and 1.
    """
    p = _known(judged)
    return _mean(judged, _cross_entropy(judged, p) - _entropy(p))


def hpsv2(judged: Judged) -> Tensor:
    """-p log S(s_i - s_j) - (1 - p) log S(s_j - s_i). Source: 2306.09341 (HPSv2), HPSLoss of
    its code."""
    return _mean(judged, _cross_entropy(judged, _known(judged)))


def hpsv2_listwise(judged: Judged) -> Tensor:
    """Cross-entropy of the softmax over all K images against the best one; several best ones share the label.

    With K = 2 it is `hpsv2`. Source: the PreferenceLoss of HPSv2's code, after 2303.14420 (HPS).
    """
    logits = at_least_float32(judged.scores).masked_fill(~judged.mask, -torch.inf)
    chosen = torch.where(judged.best > 0, F.log_softmax(logits, dim=-1), 0.0)
    return -(judged.best * chosen).sum(-1)


def plackett_luce(judged: Judged) -> Tensor:
    """-log of Plackett and Luce's probability of the whole ranking, tied images by Breslow's rule.

    Source: `palate.objectives.listwise.plackett_luce`, at beta = 1 and without a reference.
    """
    scores = at_least_float32(judged.scores)
    return luce(RankingScores(scores, torch.zeros_like(scores), judged.gains, judged.mask), beta=1.0)


def imagereward(judged: Judged) -> Tensor:
    """-log S(s_i - s_j) over the ordered pairs of a ranking, i before j; ties are no pairs.

    Source: 2304.05977 equation 1 (ImageReward).
    """
    p = _known(judged)
    return _mean(judged, _cross_entropy(judged, p), leave_out=p == 0.5)


def gaussian(judged: Judged) -> Tensor:
    """-p log E[S(d)] - (1 - p) log E[S(-d)], with d ~ N(mu_i - mu_j, sigma_i^2 + sigma_j^2).

    Source: 2508.03789 (HPSv3), where the expectation is estimated from draws of d; here `log_expected_sigmoid` computes
    it.
    """
    if judged.log_sigma is None:
        raise TypeError("The gaussian objective needs Judged.log_sigma.")
    variance = (2 * at_least_float32(judged.log_sigma)).exp()
    gap, spread = _gaps(judged), (variance.unsqueeze(-1) + variance.unsqueeze(-2)).sqrt()
    p = _known(judged)
    won, lost = log_expected_sigmoid(gap, spread), log_expected_sigmoid(-gap, spread)
    return _mean(judged, -p * won - (1 - p) * lost)


def log_expected_sigmoid(mean: Tensor, std: Tensor) -> Tensor:
    """Return log E[S(d)] for d ~ N(mean, std^2), of the shape of `mean`.

    The trapezoid rule over 145 points of [-9, 9] standard deviations, in logs. S has its nearest poles at +-i pi, so the
    error falls as exp(-16 pi^2 / std): of the logarithm, at means from -40 to 3, below 1e-7 for std <= 7 and 1e-6 at 10.
    """
    z = torch.linspace(-9, 9, 145, dtype=mean.dtype, device=mean.device)
    log_weight = -0.5 * z.square() - 0.5 * math.log(2 * math.pi) + math.log(0.125)
    return torch.logsumexp(F.logsigmoid(mean.unsqueeze(-1) + std.unsqueeze(-1) * z) + log_weight, dim=-1)


class Objective(NamedTuple):
    """A loss, how rankings are weighted under it, and what it needs."""

    loss: Callable[[Judged], Tensor]
    weighting: Weighting
    """"prompt": 1 / how many rankings the prompt has; "comparisons": as many as it has; "even": all alike."""
    summary: str
    drops_ties: bool = False
    needs_sigma: bool = False


OBJECTIVES: dict[str, Objective] = {
    "pickscore": Objective(pickscore, "prompt", "soft labels over two images, each prompt counting once"),
    "hpsv2": Objective(hpsv2, "comparisons", "soft labels over two images, each comparison counting once"),
    "hpsv2_listwise": Objective(hpsv2_listwise, "even", "softmax over all images of a ranking against the best"),
    "plackett_luce": Objective(plackett_luce, "even", "the whole order of a ranking"),
    "imagereward": Objective(imagereward, "comparisons", "all ordered pairs of a ranking", drops_ties=True),
    "gaussian": Objective(
        gaussian, "comparisons", "as hpsv2, for scores that know how sure they are", needs_sigma=True
    ),
}
"""Name -> objective. The weights of all rankings of a run average to 1."""


def _gaps(judged: Judged) -> Tensor:
    scores = at_least_float32(judged.scores)
    return scores.unsqueeze(-1) - scores.unsqueeze(-2)


def _known(judged: Judged) -> Tensor:
    """Return the preferences with 1/2 for those that are not there, which `_mean` leaves out."""
    return judged.preference.to(at_least_float32(judged.scores).dtype).nan_to_num(nan=0.5)


def _cross_entropy(judged: Judged, p: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(_gaps(judged), p, reduction="none")


def _entropy(p: Tensor) -> Tensor:
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


def _mean(judged: Judged, each: Tensor, *, leave_out: Tensor | None = None) -> Tensor:
    """Return the mean of (B, K, K) over the comparisons i < j; 0 for a ranking without any."""
    compared = torch.triu(~judged.preference.isnan(), diagonal=1)
    if leave_out is not None:
        compared = compared & ~leave_out
    return torch.where(compared, each, 0.0).sum((-2, -1)) / compared.sum((-2, -1)).clamp_min(1)

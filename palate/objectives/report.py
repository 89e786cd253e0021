"""What training says about itself each step: the same names for both modalities and for pairs, ratings, rankings.

rewards/chosen, rewards/rejected: beta * r; where there is no reference beta * score, for answers beta * score per token;
margin: rewards/chosen - rewards/rejected, for pairs beta * D;
accuracy: share of preferences that the rewards reproduce;
drift/chosen, drift/rejected: policy score - reference score, in the score's unit;
displacement: share of chosen outputs whose score fell below the reference's.

All are 0-d tensors averaged over the batch; the last three are absent where there is no reference. A mean over nothing
is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from palate.objectives.scores import PairScores, RankingScores, RatingScores, at_least_float32


@torch.no_grad()
def pair_report(scores: PairScores, beta: float) -> dict[str, Tensor]:
    """Return the report of B pairs. Accuracy leaves out pairs with p_chosen = 1/2; an exact draw (D = 0) counts 1/2."""
    if scores.ref_chosen is None or scores.ref_rejected is None:
        chosen, rejected = at_least_float32(scores.chosen), at_least_float32(scores.rejected)
        if scores.unit == "nats" and scores.chosen_lengths is not None and scores.rejected_lengths is not None:
            chosen, rejected = chosen / scores.chosen_lengths, rejected / scores.rejected_lengths
        has_reference = False
    else:
        chosen, rejected = scores.chosen_reward, scores.rejected_reward
        has_reference = True
    return _report(chosen, rejected, beta, _accuracy(chosen - rejected, scores.p_chosen), has_reference)


@torch.no_grad()
def rating_report(scores: RatingScores, beta: float) -> dict[str, Tensor]:
    """Return the report of B outputs: chosen are the desirable ones; accuracy is the share with r on the right side."""
    r, wanted = scores.reward, scores.desirable
    signs = torch.where(wanted, r.sign(), -r.sign())
    return _report(r[wanted], r[~wanted], beta, ((1 + signs) / 2).mean())


@torch.no_grad()
def ranking_report(scores: RankingScores, beta: float) -> dict[str, Tensor]:
    """Return the report of B rankings: chosen is the best output of each, rejected the worst; ties go to the first.

    Accuracy is the share of ordered pairs within the rankings whose rewards have the same order.
    """
    r, gains = scores.reward, at_least_float32(scores.gains)
    there = torch.ones_like(gains, dtype=torch.bool) if scores.mask is None else scores.mask
    best = gains.masked_fill(~there, -torch.inf).argmax(-1, keepdim=True)
    worst = gains.masked_fill(~there, torch.inf).argmin(-1, keepdim=True)
    ordered = (gains.unsqueeze(-1) > gains.unsqueeze(-2)) & there.unsqueeze(-1) & there.unsqueeze(-2)
    agrees = (1 + (r.unsqueeze(-1) - r.unsqueeze(-2)).sign()) / 2
    accuracy = torch.where(ordered, agrees, 0.0).sum() / ordered.sum()
    return _report(r.gather(-1, best), r.gather(-1, worst), beta, accuracy)


def _report(
    chosen: Tensor, rejected: Tensor, beta: float, accuracy: Tensor, has_reference: bool = True
) -> dict[str, Tensor]:
    report = {
        "rewards/chosen": beta * chosen.mean(),
        "rewards/rejected": beta * rejected.mean(),
        "margin": beta * (chosen.mean() - rejected.mean()),
        "accuracy": accuracy,
    }
    if has_reference:
        report["drift/chosen"] = chosen.mean()
        report["drift/rejected"] = rejected.mean()
        report["displacement"] = (chosen < 0).to(chosen.dtype).mean()
    return report


def _accuracy(difference: Tensor, p_chosen: Tensor | None) -> Tensor:
    agrees = (1 + difference.sign()) / 2
    if p_chosen is None:
        return agrees.mean()
    p = p_chosen.to(difference.dtype)
    decided = p != 0.5
    agrees = torch.where(p > 0.5, agrees, 1 - agrees)
    return torch.where(decided, agrees, 0.0).sum() / decided.sum()


@torch.no_grad()
def by_timestep(values: Tensor, timesteps: Tensor, *, buckets: int = 4, last: float = 1000) -> dict[str, Tensor]:
    """Return the mean of values, (B,), in equal buckets of timesteps, (B,), in [0, last): {"t0-250": ..., ...}.

    Use `last=1` for flow models. The mean of a bucket that no item falls into is NaN.
    """
    index = (timesteps.double() * buckets / last).floor().clamp(0, buckets - 1)
    return {
        f"t{k * last / buckets:g}-{(k + 1) * last / buckets:g}": at_least_float32(values)[index == k].mean()
        for k in range(buckets)
    }


def gradient_products(parameters: Iterable[Tensor], chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return |g_w|^2, <g_w, g_l>, |g_l|^2, 0-d, of two scalars' gradients; the graph is kept.

    Where parameters are sharded, sum each of the three over ranks before taking the cosine.
    """
    trained = [p for p in parameters if p.requires_grad]
    g_w = torch.autograd.grad(chosen, trained, retain_graph=True, allow_unused=True)
    g_l = torch.autograd.grad(rejected, trained, retain_graph=True, allow_unused=True)
    zero = chosen.new_zeros((), dtype=torch.float32)
    return _inner(g_w, g_w, zero), _inner(g_w, g_l, zero), _inner(g_l, g_l, zero)


def gradient_entanglement(parameters: Iterable[Tensor], chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return the cosine of the gradients of two scalars, say the mean chosen and the mean rejected score; 0-d.

    Near 1, whatever raises one raises the other, and a preference loss tends to lower both (2410.13828). NaN where a
    gradient is zero. It costs two more backward passes; the graph is kept.
    """
    own, cross, other = gradient_products(parameters, chosen, rejected)
    return cross / (own * other).sqrt()


def _inner(a: Iterable[Tensor | None], b: Iterable[Tensor | None], zero: Tensor) -> Tensor:
    return sum(
        ((x.float() * y.float()).sum() for x, y in zip(a, b, strict=True) if x is not None and y is not None),
        start=zero,
    )

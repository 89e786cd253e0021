"""The losses by hand, by a second way, and the identities between them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats
from torch import Tensor

from rewards.judgements import Labels, weights
from rewards.losses import (
    OBJECTIVES,
    Judged,
    gaussian,
    hpsv2,
    hpsv2_listwise,
    imagereward,
    log_expected_sigmoid,
    pickscore,
    plackett_luce,
)

LN2, LN3 = math.log(2), math.log(3)
MATCHED, MISSED = math.log(4 / 3), math.log(4)  # -log S(ln 3) and -log S(-ln 3): S(ln 3) = 3 / 4


def judged(scores: list[float], labels: Labels, log_sigma: list[float] | None = None, pad: int = 0) -> Judged:
    """Return one ranking, followed by `pad` places where no image is."""
    size = len(scores) + pad

    def row(values: object, fill: float) -> Tensor:
        return torch.tensor([[*values, *[fill] * pad]], dtype=torch.float64)  # type: ignore[misc]

    preference = torch.full((1, size, size), torch.nan, dtype=torch.float64)
    preference[0, : len(scores), : len(scores)] = torch.from_numpy(labels.preference)
    return Judged(
        scores=row(scores, 7.0),
        preference=preference,
        gains=row(labels.gains, 0.0),
        best=row(labels.best, 0.0),
        mask=row([1] * len(scores), 0.0).bool(),
        log_sigma=None if log_sigma is None else row(log_sigma, 0.0),
    )


def pair(p: float) -> Labels:
    return Labels.of_pair(p, (p, 0, 1 - p))


@pytest.mark.parametrize(
    ("p", "loss", "expected"),
    [
        (1.0, pickscore, MATCHED),
        (0.0, pickscore, MISSED),
        (0.5, pickscore, (MATCHED + MISSED) / 2 - LN2),
        (1.0, hpsv2, MATCHED),
        (0.5, hpsv2, (MATCHED + MISSED) / 2),
        (0.75, hpsv2, 0.75 * MATCHED + 0.25 * MISSED),
        (0.75, pickscore, 0.0),  # the prediction is the label
        (1.0, imagereward, MATCHED),
        (0.5, imagereward, 0.0),  # a tie is no pair
        (0.75, hpsv2_listwise, 0.75 * MATCHED + 0.25 * MISSED),
        (1.0, plackett_luce, MATCHED),
    ],
)
def test_a_pair_that_is_ln_3_apart(p: float, loss, expected: float) -> None:
    """The scores ln 3 and 0 predict 3 / 4, so a win costs ln 4/3 and a loss ln 4."""
    assert loss(judged([LN3, 0.0], pair(p))).item() == pytest.approx(expected, abs=1e-12)


def test_a_tie_that_is_met_costs_nothing_under_pickscore() -> None:
    """Equal scores predict 1/2: cross-entropy ln 2, of which its code subtracts ln 2."""
    assert pickscore(judged([5.0, 5.0], pair(0.5))).item() == pytest.approx(0.0, abs=1e-12)
    assert hpsv2(judged([5.0, 5.0], pair(0.5))).item() == pytest.approx(LN2)


def test_rankings_by_hand() -> None:
    """Images at ln 3, 0, 0, of which the first is best and the others tie.

    imagereward: two pairs of ln 4/3, the tie is none. hpsv2: the tie adds ln 2, over three. Listwise: the first has
    3 / 5 of the softmax.
    """
    ranking = judged([LN3, 0.0, 0.0], Labels.of_scores([2, 1, 1]))
    assert imagereward(ranking).item() == pytest.approx(MATCHED)
    assert hpsv2(ranking).item() == pytest.approx((2 * MATCHED + LN2) / 3)
    assert pickscore(ranking).item() == pytest.approx(2 * MATCHED / 3)
    assert hpsv2_listwise(ranking).item() == pytest.approx(-math.log(3 / 5))


def test_two_best_images_share_the_listwise_label() -> None:
    """Softmax 1/6, 2/6, 3/6; the first two are best: (ln 6 + ln 3) / 2."""
    ranking = judged([0.0, LN2, LN3], Labels.of_scores([1, 1, 0]))
    assert hpsv2_listwise(ranking).item() == pytest.approx((math.log(6) + LN3) / 2)


def test_plackett_and_luce_by_hand() -> None:
    """Weights 3, 2, 1 in that order: 3/6 * 2/3 * 1/1 = 1/3."""
    assert plackett_luce(judged([LN3, LN2, 0.0], Labels.of_scores([3, 2, 1]))).item() == pytest.approx(LN3)


@pytest.mark.parametrize("std", [0.05, 0.5, 1.0, 3.0, 7.0])
@pytest.mark.parametrize("mean", [-20.0, -3.0, -0.4, 0.0, 2.0])
def test_the_expectation_is_that_of_adaptive_quadrature(mean: float, std: float) -> None:
    peak = mean + min(std * std, abs(mean))  # where S(d) times the density has its mass, about
    expected, _ = integrate.quad(
        lambda d: special.expit(d) * stats.norm.pdf(d, mean, std),
        *(mean - 12 * std, mean + 12 * std),
        points=sorted({mean, peak, 0.0}),
        epsabs=0,
        epsrel=1e-11,
        limit=400,
    )
    found = log_expected_sigmoid(*(torch.tensor(v, dtype=torch.float64) for v in (mean, std))).item()
    assert found == pytest.approx(math.log(expected), abs=2e-7)


def test_the_expectation_in_one_precision() -> None:
    mean, std = torch.linspace(-15, 15, 61), torch.full((61,), 2.0)
    exact = log_expected_sigmoid(mean.double(), std.double())
    assert torch.allclose(log_expected_sigmoid(mean, std).double(), exact, atol=1e-6)


def test_gaussian_of_certain_scores_is_hpsv2_and_of_equal_ones_ln_2() -> None:
    certain = judged([LN3, 0.0], pair(0.75), log_sigma=[-5.0, -5.0])
    assert gaussian(certain).item() == pytest.approx(hpsv2(certain).item(), abs=1e-4)
    assert gaussian(judged([1.0, 1.0], pair(0.3), log_sigma=[1.0, 0.5])).item() == pytest.approx(LN2, abs=1e-7)


def test_gaussian_uses_both_spreads() -> None:
    """sigma 3 and 4 make a difference of sigma 5: E[S(d)] of N(2, 25)."""
    found = gaussian(judged([2.0, 0.0], pair(1.0), log_sigma=[math.log(3), math.log(4)])).item()
    expected, _ = integrate.quad(lambda d: special.expit(d) * stats.norm.pdf(d, 2, 5), -60, 60, limit=200)
    assert found == pytest.approx(-math.log(expected), abs=1e-8)


LOSSES = [objective.loss for objective in OBJECTIVES.values()]
score = st.floats(-5, 5, allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(score, st.integers(0, 3)), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_neither_the_order_of_images_nor_padding_matters(rows: list[tuple[float, int]], random) -> None:
    mixed = random.sample(rows, len(rows))
    for loss in LOSSES:
        found = [
            loss(
                judged([s for s, _ in some], Labels.of_scores([g for _, g in some]), [s / 5 for s, _ in some], pad=pad)
            )
            for some, pad in ((rows, 0), (mixed, 0), (rows, 2))
        ]
        assert torch.allclose(found[0], found[1], atol=1e-9) and torch.allclose(found[0], found[2], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(score, score, st.floats(0, 1), st.floats(-10, 10))
def test_only_differences_of_scores_count_and_gradients_agree(a: float, b: float, p: float, shift: float) -> None:
    for loss in LOSSES:
        one, other = (judged([a + s, b + s], pair(p), [0.1, -0.2]) for s in (0.0, shift))
        assert torch.allclose(loss(one), loss(other), atol=1e-9)
    slopes = []
    for loss in (pickscore, hpsv2, hpsv2_listwise):
        one = judged([a, b], pair(p))
        one.scores.requires_grad_()
        (slope,) = torch.autograd.grad(loss(one).sum(), one.scores)
        slopes.append(slope)
    assert torch.allclose(slopes[0], slopes[1]) and torch.allclose(slopes[0], slopes[2])


def test_padding_has_no_gradient_and_no_nan() -> None:
    for loss in LOSSES:
        one = judged([1.0, 0.0, -1.0], Labels.of_scores([0, 1, 1]), [0.0, 0.1, 0.2], pad=2)
        one.scores.requires_grad_()
        (slope,) = torch.autograd.grad(loss(one).sum(), one.scores)
        assert torch.isfinite(slope).all() and (slope[0, 3:] == 0).all() and (slope[0, :3] != 0).any()


def test_sixteen_bits_are_computed_in_thirty_two() -> None:
    one = judged([30.0, 30.125], pair(1.0), [0.0, 0.0])
    low = Judged(one.scores.bfloat16(), one.preference, one.gains, one.best, one.mask, one.log_sigma)
    for loss in LOSSES:
        assert loss(low).dtype in (torch.float32, torch.float64)


def test_weights_by_hand() -> None:
    """Prompt a has three pairs and b one: 1/3, 1/3, 1/3 and 1, over their mean 1/2. Comparisons 1, 3, 2: over 2."""
    assert weights("prompt", ["a", "a", "b", "a"], np.ones(4)) == pytest.approx([2 / 3, 2 / 3, 2, 2 / 3])
    assert weights("comparisons", ["a", "b", "c"], np.array([1.0, 3, 2])) == pytest.approx([0.5, 1.5, 1])
    assert weights("even", ["a", "a"], np.array([1.0, 3])).tolist() == [1, 1]


def test_gaussian_without_sigma_is_our_own_mistake() -> None:
    with pytest.raises(TypeError, match="log_sigma"):
        gaussian(judged([0.0, 1.0], pair(1.0)))

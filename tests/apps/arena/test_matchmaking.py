"""Matchmaking: weights by hand, probabilities that sum to one and are those of the draws, caps, newcomers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.arena.matchmaking import ambiguity, choose_pair, mixture
from apps.arena.ratings.tally import Standing, Tally
from palate.errors import UserError


def standing(theta: list[float], variance: list[float] | float = 0.05, battles: float = 100) -> Standing:
    m = len(theta)
    table = battles * (1 - np.eye(m))
    names = tuple(f"m{i}" for i in range(m))
    return Standing(names, np.array(theta), np.diag(np.broadcast_to(np.asarray(variance, float), m)), table)


def test_the_weight_by_hand() -> None:
    """theta 1/2 and 0 with variances .3 and .2: s^2 = 1/2, Phi(-.5/.7071) = .239750, p = .622459, so
    log(1 + p(1-p)/2) = .111096 and the weight is .0266353."""
    weight = np.exp(ambiguity(standing([0.5, 0.0], [0.3, 0.2])))
    assert weight[0, 1] == weight[1, 0] == pytest.approx(0.239750 * 0.111096, rel=1e-4)


def test_equal_models_meet_equally_often_and_far_ones_seldom() -> None:
    equal = mixture(standing([0.0] * 4)).probability
    assert equal[np.triu_indices(4, 1)] == pytest.approx(1 / 6)
    far = mixture(standing([3.0, 0.1, 0.0, -3.0])).probability
    assert far[1, 2] > 0.85
    assert far[0, 3] == pytest.approx(0.1 / 6, rel=1e-3)  # the floor


@given(
    st.integers(2, 7).flatmap(lambda m: st.lists(st.floats(-40, 40), min_size=m, max_size=m)),
    st.floats(1e-8, 50),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_probabilities_sum_to_one_and_reach_every_allowed_pair(theta: list[float], variance: float, seed: int) -> None:
    rng, m = np.random.default_rng(seed), len(theta)
    allowed = rng.random((m, m)) < 0.6
    allowed = np.triu(allowed, 1) | np.triu(allowed, 1).T
    allowed[0, 1] = allowed[1, 0] = True
    where = Standing(
        tuple(map(str, range(m))), np.array(theta), np.eye(m) * variance, rng.integers(0, 60, (m, m)).astype(float)
    )
    mixed = mixture(where, allowed=allowed)
    assert sum(mixed.shares.values()) == pytest.approx(1)
    assert mixed.probability.sum() == pytest.approx(1)
    assert np.array_equal(mixed.probability > 0, np.triu(allowed, 1))
    drawn = choose_pair(where, "battle", seed=seed, allowed=allowed)
    i, j = sorted(map(int, drawn.pair))
    assert allowed[i, j]
    assert drawn.probability == mixed.probability[i, j]


def test_draws_have_the_probability_that_they_say() -> None:
    """4000 keyed draws: chi-square over the ten pairs of five models stays below the 99.9 % point of 9 degrees, 27.9."""
    where = standing([0.8, 0.3, 0.1, -0.2, -1.0], battles=30)
    where.battles[4] = where.battles[:, 4] = 5.0
    drawn = [choose_pair(where, f"battle {i}") for i in range(4000)]
    expected = mixture(where).probability
    seen = np.zeros((5, 5))
    for choice in drawn:
        i, j = sorted(where.models.index(name) for name in choice.pair)
        seen[i, j] += 1
        assert choice.probability == expected[i, j]
    upper = np.triu_indices(5, 1)
    assert ((seen - 4000 * expected)[upper] ** 2 / (4000 * expected[upper])).sum() < 27.9
    shown_first = np.mean([choice.pair[0] < choice.pair[1] for choice in drawn])
    assert shown_first == pytest.approx(0.5, abs=0.03)
    rules = [choice.rule for choice in drawn]
    assert rules.count("floor") / 4000 == pytest.approx(0.1, abs=0.02)
    assert rules.count("newcomer") / 4000 == pytest.approx(0.2, abs=0.025)


def test_the_key_decides() -> None:
    where = standing([0.5, 0.2, 0.0, -0.3])
    assert choose_pair(where, "x", seed=1) == choose_pair(where, "x", seed=1)
    assert len({choose_pair(where, f"{i}").pair for i in range(200)}) > 6
    assert {choose_pair(where, "x", seed=s).pair for s in range(50)} != {choose_pair(where, "x").pair}


def test_newcomers_get_their_quota_each_alike() -> None:
    """Two newcomers of five: the rule's fifth is split evenly between them, and the old pairs get none of it."""
    tally = Tally([f"m{i}" for i in range(5)])
    for i in range(3):
        for j in range(3):
            if i != j:
                tally.add(f"m{i}", f"m{j}", "a", times=40)
    mixed = mixture(tally.standing(), floor=0.0, newcomer_share=0.2)
    newcomer = mixed.pairs["newcomer"]
    assert newcomer.sum() == pytest.approx(1)
    assert newcomer[:3, :3].sum() == 0
    assert newcomer[:3, 3].sum() == pytest.approx(newcomer[:3, 4].sum())
    assert mixed.probability[:, 3:].sum() > 0.2
    assert "newcomer" not in mixture(standing([0.0, 0.1], battles=1)).pairs  # all are new: nobody has a quota


def test_nothing_left_and_bad_shares_are_said() -> None:
    where = standing([0.0, 0.1])
    with pytest.raises(UserError, match="No pair"):
        choose_pair(where, "x", allowed=np.eye(2, dtype=bool))
    with pytest.raises(UserError, match="No pair"):
        choose_pair(standing([0.0]), "x")
    with pytest.raises(UserError, match="at most 1"):
        choose_pair(where, "x", floor=0.9, newcomer_share=0.2)
    with pytest.raises(UserError, match="expected"):
        choose_pair(where, "x", allowed=np.ones((3, 3), dtype=bool))


def test_one_sure_far_pair_can_still_be_drawn() -> None:
    """Phi(-1e4) is 0 in floating point; its logarithm is not."""
    assert math.isfinite(ambiguity(standing([10.0, -10.0], 1e-6))[0, 1])
    assert mixture(standing([10.0, -10.0], 1e-6), floor=0.0).probability[0, 1] == 1.0

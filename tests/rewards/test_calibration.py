"""Probabilities by Davidson's model: by hand, by another optimiser, and as a scorer's answer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from palate.errors import UserError
from palate.records import Media, Pair, Vote
from palate.votes import votes_to_pairs
from rewards import ScoreBatch
from rewards.calibration import Calibrated, Calibration, compare, fit, log_loss, reliability, tally

LN2 = math.log(2)


def test_probabilities_by_hand() -> None:
    """At equal scores nu = 2 gives 1 : 2 : 1. A gap of 2 T ln 2 with nu = 1/2 gives 2 : 1/2 : 1/2."""
    assert Calibration(1.0, 2.0).probabilities(np.array(0.0)) == pytest.approx([0.25, 0.5, 0.25])
    assert Calibration(3.0, 0.5).probabilities(np.array([6 * LN2]))[0] == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def test_without_ties_it_is_the_logistic_function_and_nan_stays() -> None:
    found = Calibration(2.0, 0.0).probabilities(np.array([[1.0, -1000.0], [np.nan, 0.0]]))
    assert found[0, 0] == pytest.approx([1 / (1 + math.exp(-0.5)), 0, 1 / (1 + math.exp(0.5))])
    assert found[0, 1] == pytest.approx([0, 0, 1]) and found[1, 1] == pytest.approx([0.5, 0, 0.5])
    assert np.isnan(found[1, 0]).all()


def test_an_infinite_temperature_is_a_coin() -> None:
    assert Calibration(math.inf, 0.0).probabilities(np.array(5.0)) == pytest.approx([0.5, 0, 0.5])


def test_fit_by_hand() -> None:
    """Gap 1 everywhere, won 3 of 4: S(1 / T) = 3/4, T = 1 / ln 3. Equal scores, 4 of 10 ties: nu / (2 + nu) = .4."""
    assert fit([1.0] * 4000, [[1, 0, 0]] * 3000 + [[0, 0, 1]] * 1000).temperature == pytest.approx(
        1 / math.log(3), rel=1e-4
    )
    assert fit([0.0], [[3, 4, 3]]).tie == pytest.approx(4 / 3, rel=1e-6)


def test_fit_finds_what_made_the_votes() -> None:
    rng = np.random.default_rng(0)
    truth = Calibration(0.4, 0.6)
    gaps = rng.normal(size=20_000)
    votes = np.array([rng.multinomial(1, p) for p in truth.probabilities(gaps)])
    found = fit(gaps, votes)
    assert found.temperature == pytest.approx(0.4, rel=0.05) and found.tie == pytest.approx(0.6, rel=0.05)
    assert found.votes == 20_000


def test_fit_is_the_least_log_loss() -> None:
    """Nelder and Mead's method on the published likelihood finds the same numbers."""
    rng = np.random.default_rng(1)
    gaps = rng.normal(scale=20, size=300)
    votes = rng.integers(0, 4, size=(300, 3)) + 3 * np.stack([gaps > 0, gaps * 0, gaps < 0], axis=1)

    def cost(x: np.ndarray) -> float:
        a, tie, b = np.exp(gaps / 2 / np.exp(x[0])), np.exp(x[1]), np.exp(-gaps / 2 / np.exp(x[0]))
        return -float((votes * np.log(np.stack([a, tie + 0 * a, b], axis=1) / (a + tie + b)[:, None])).sum())

    best = optimize.minimize(cost, [3.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x
    found = fit(gaps, votes)
    assert [found.temperature, found.tie] == pytest.approx(np.exp(best), rel=1e-4)
    assert log_loss(found.probabilities(gaps), votes) == pytest.approx(cost(best) / votes.sum(), abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)), min_size=2))
def test_neither_the_unit_nor_the_order_of_a_pair_matters(rows: list[tuple[float, int, int, int]]) -> None:
    gaps, votes = np.array([r[0] for r in rows]), np.array([r[1:] for r in rows], dtype=float)
    if not votes[:, [0, 2]].sum():
        return
    found, larger, turned = fit(gaps, votes), fit(7 * gaps, votes), fit(-gaps, votes[:, ::-1])
    probe = np.linspace(-2, 2, 5)
    assert larger.probabilities(7 * probe) == pytest.approx(found.probabilities(probe), abs=1e-4)
    assert turned.probabilities(probe) == pytest.approx(found.probabilities(probe), abs=1e-4)


def test_a_perfect_scorer_has_a_finite_temperature_and_a_contrary_one_none() -> None:
    assert 0 < fit([1.0, -2.0], [[1, 0, 0], [0, 0, 1]]).temperature < math.inf
    assert fit([1.0, -2.0], [[0, 0, 1], [1, 0, 0]]).temperature == math.inf


def test_nothing_to_fit_on_is_said() -> None:
    with pytest.raises(UserError, match="no votes"):
        fit([np.nan], [[1, 0, 0]])
    with pytest.raises(UserError, match="All of 2 votes are ties"):
        fit([1.0], [[0, 2, 0]])
    with pytest.raises(UserError, match="needs its votes"):
        fit([1.0, 2.0], [[1, 0, 0]])


def test_tally_of_votes_and_of_other_pairs() -> None:
    one, other = Media(data=b"one"), Media(data=b"other")
    votes = [Vote("a cat", one, other, outcome, f"v{k}", "b") for k, outcome in enumerate(("a", "a", "b", "tie"))]  # type: ignore[arg-type]
    (pair,), _ = votes_to_pairs(votes, ties="soft")
    assert tally(pair) == (2, 1, 1) and tally(pair.swap()) == (1, 1, 2)
    (pair,), _ = votes_to_pairs(votes, ties="drop")
    assert tally(pair) == (2, 0, 1)
    assert tally(Pair("p", one, other, p_chosen=0.5)) == (0, 1, 0)
    assert tally(Pair("p", one, other, p_chosen=0.75)) == (0.75, 0, 0.25)


def test_reliability_by_hand() -> None:
    """Predictions .9 won .8; .1 won .4, turned .9 and .6; .6 won 1. The halves are {.6, .9} and {.9}."""
    p = np.array([[0.9, 0, 0.1], [0.1, 0, 0.9], [0.6, 0, 0.4]])
    votes = np.array([[8, 0, 2], [4, 0, 6], [10, 0, 0]], dtype=float)
    found = reliability(p, votes, bins=2)
    assert found.predicted == pytest.approx([0.75, 0.9]) and found.observed == pytest.approx([0.9, 0.6])
    found = reliability(p, votes, bins=3)
    assert found.predicted == pytest.approx([0.6, 0.9, 0.9]) and found.observed == pytest.approx([1.0, 0.8, 0.6])
    assert found.ece == pytest.approx((0.4 + 0.1 + 0.3) / 3)


def test_a_tie_is_half_a_win_and_a_prediction_of_one_half_is_never_wrong() -> None:
    found = reliability(np.array([[0.5, 0.2, 0.3], [0.5, 0.0, 0.5]]), np.array([[1.0, 2, 1], [4, 0, 0]]), bins=2)
    assert found.predicted == pytest.approx([0.5, 0.6]) and found.observed == pytest.approx([0.5, 0.5])


def test_calibrated_probabilities_of_their_own_votes_are_reliable() -> None:
    rng = np.random.default_rng(3)
    truth = Calibration(1.0, 0.3)
    gaps = rng.normal(scale=2, size=20_000)
    votes = np.array([rng.multinomial(1, p) for p in truth.probabilities(gaps)], dtype=float)
    assert reliability(truth.probabilities(gaps), votes).ece < 0.01
    assert reliability(Calibration(0.3, 0.3).probabilities(gaps), votes).ece > 0.08


def test_saved_and_loaded(tmp_path: Path) -> None:
    for calibration in (Calibration(0.5, 0.2, "cosine", "abc", 12.0, 3), Calibration(math.inf, 0.0)):
        calibration.save(tmp_path / "c.json")
        assert Calibration.load(tmp_path / "c.json") == calibration
    (tmp_path / "c.json").write_text('{"temperature": -1, "tie": 0}')
    with pytest.raises(UserError, match="c.json is no calibration"):
        Calibration.load(tmp_path / "c.json")


class Fixed:
    """Scores that the images' bytes spell out; `x` fails."""

    name, unit = "fixed", "point"

    def score(self, prompts, images) -> ScoreBatch:
        values = np.array([np.nan if i == b"x" else float(i) for i in images], dtype=np.float64)
        failures = {k: "it is an x" for k, i in enumerate(images) if i == b"x"}
        return ScoreBatch(values, self.name, self.unit, "w1", "none", failures=failures)


def test_compare_gives_probabilities_that_sum_to_one() -> None:
    found = compare(Fixed(), "a cat", [b"1", b"3", b"x", b"2"], Calibration(0.7, 0.4))
    off = ~np.eye(4, dtype=bool)
    sums = (found.wins + found.wins.T + found.ties)[off]
    assert np.nansum(sums) == pytest.approx(6) and np.isnan(sums).sum() == 6
    assert found.best[[0, 1, 3]].sum() == pytest.approx(1) and np.isnan(found.best[2])
    assert found.failures == {2: "it is an x"}


def test_of_two_images_the_best_is_bradley_and_terrys_winner() -> None:
    found = Calibrated(Fixed(), Calibration(2.0, 0.0, unit="point", weights="w1")).compare("a cat", [b"5", b"1"])
    assert found.wins[0, 1] == pytest.approx(1 / (1 + math.exp(-2))) == pytest.approx(found.best[0])


def test_a_calibration_of_another_scorer_is_refused() -> None:
    with pytest.raises(UserError, match="in the unit 'logit'"):
        Calibrated(Fixed(), Calibration(1.0, 0.0, unit="logit"))
    with pytest.raises(UserError, match="other weights"):
        Calibrated(Fixed(), Calibration(1.0, 0.0, weights="w2")).compare("p", [b"1", b"2"])
    with pytest.raises(UserError, match="at least two"):
        compare(Fixed(), "p", [b"1"], Calibration(1.0, 0.0))


def test_a_calibrated_scorer_is_a_scorer() -> None:
    scorer = Calibrated(Fixed(), Calibration(1.0, 0.0))
    assert scorer.score(["p"], [b"4"]).values.tolist() == [4.0] and (scorer.name, scorer.unit) == ("fixed", "point")

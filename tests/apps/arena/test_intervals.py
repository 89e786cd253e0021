"""Intervals: the sandwich by hand, coverage with voters who have a taste, sup-t and ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from apps.arena.ratings.fit import Counts, fit
from apps.arena.ratings.intervals import (
    contrasts,
    effective_voters,
    rank_bounds,
    sandwich,
    student,
    sup_t,
    voter_scores,
)
from apps.arena.ratings.section import section
from apps.arena.ratings.solve import Settings
from apps.arena.ratings.table import VoteTable
from apps.arena.ratings.tally import cells
from tests.apps.arena.simulated import table_of, votes_of


def solved(votes: VoteTable, ties: str = "half") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return theta, bread and clustered covariance."""
    found = fit(Counts.of_cells(cells(votes)), ties=ties)  # type: ignore[arg-type]
    scores = voter_scores(found, votes.model_a, votes.model_b, votes.outcome, votes.voter, len(votes.voters))
    return found.theta, found.bread(), sandwich(found.bread(), scores, len(np.unique(votes.voter)), few=0)


def test_the_sandwich_by_hand() -> None:
    """Voters give x 4 of 5, 1 of 3 and 3 of 4 against y: p = 8/12. Scores in the log-odds are k - n p = 2/3, -1, 1/3, the
    information 12 p (1-p) = 8/3, so Var(theta_x - theta_y) = 3/2 (4/9 + 1 + 1/9) / (8/3)^2 = 21/64."""
    votes = table_of(
        *[("x", "y", "a", "1")] * 4, ("x", "y", "b", "1"),
        ("x", "y", "a", "2"), *[("y", "x", "a", "2")] * 2,
        *[("y", "x", "b", "3")] * 3, ("x", "y", "b", "3"),
    )  # fmt: skip
    theta, bread, covariance = solved(votes)
    assert theta[0] - theta[1] == pytest.approx(math.log(2))
    assert contrasts(covariance)[0, 1] == pytest.approx(math.sqrt(21 / 64))
    assert contrasts(bread)[0, 1] == pytest.approx(math.sqrt(3 / 8))
    assert covariance.sum(0) == pytest.approx([0, 0], abs=1e-12)


def test_repeating_every_vote_of_every_voter_makes_nothing_surer() -> None:
    votes = votes_of(np.array([0.5, 0.0, -0.5]), 30, 10, np.random.default_rng(0), taste=0.5)
    twice = votes.take(np.repeat(np.arange(len(votes)), 2))
    for ties in ("half", "davidson"):
        one, two = solved(votes, ties), solved(twice, ties)
        assert one[2] == pytest.approx(two[2], rel=1e-6)
        assert two[1] == pytest.approx(one[1] / 2, rel=1e-6)


def test_few_voters_never_promise_more_than_independent_votes() -> None:
    """Three voters and five models: B has rank 2, so some directions would look certain."""
    votes = votes_of(np.linspace(1, -1, 5), 3, 60, np.random.default_rng(1))
    found = fit(Counts.of_cells(cells(votes)))
    scores = voter_scores(found, votes.model_a, votes.model_b, votes.outcome, votes.voter, 3)
    bread = found.bread()
    raw, raised = (sandwich(bread, scores, 3, few=few) for few in (0, 2))
    assert np.linalg.matrix_rank(raw, tol=1e-9) == 2
    for least in (raw, bread):
        assert np.linalg.eigvalsh(raised - least).min() > -1e-9
    assert (contrasts(raw) < contrasts(bread) * 0.9).any()


def coverage(voters: int, per_voter: int, taste: float, runs: int, *, clustered: bool = True) -> float:
    """Return how often 95 % intervals of 5 models hold the truth. Without ties, the truth is the limit of many voters."""
    strengths = np.linspace(0.8, -0.8, 5)
    many = votes_of(strengths, 40_000, 10, np.random.default_rng(10**6), taste=taste, log_nu=-30.0)
    truth = fit(Counts.of_cells(cells(many))).theta
    hits = []
    for run in range(runs):
        votes = votes_of(strengths, voters, per_voter, np.random.default_rng(run), taste=taste, log_nu=-30.0)
        theta, bread, covariance = solved(votes)
        error = np.sqrt(np.diag(covariance if clustered else bread))
        hits.append(np.abs(theta - truth) <= student(0.95, voters if clustered else 1e9) * error)
    return float(np.mean(hits))


def test_coverage_with_clustered_voters() -> None:
    """60 voters of 25 votes with a taste of their own. 300 runs of 5 models, which correlate: standard error about .8
    points, so 95 % should read 92.5 to 97.5. Treating votes as independent falls short of it."""
    assert 0.925 <= coverage(60, 25, 0.6, 300) <= 0.975
    assert coverage(60, 25, 0.6, 300, clustered=False) < 0.92


def test_sup_t_of_independent_errors() -> None:
    """The largest of m independent |Z| stays below c with probability (2 Phi(c) - 1)^m."""
    expected = stats.norm.ppf((1 + 0.95 ** (1 / 8)) / 2)
    found = sup_t(np.diag(np.linspace(0.1, 3, 8)), 1e9, 0.95, np.random.default_rng(0), pairs=False)
    assert found == pytest.approx(expected, rel=0.015)


def test_sup_t_of_pairs_is_the_studentised_range() -> None:
    """With equal independent errors max |Z_i - Z_j| / sqrt 2 is Tukey's range over sqrt 2, also with few voters."""
    for voters in (4, 201):
        expected = stats.studentized_range.ppf(0.95, 6, voters - 1) / math.sqrt(2)
        found = sup_t(np.eye(6), voters, 0.95, np.random.default_rng(1), pairs=True)
        assert found == pytest.approx(expected, rel=0.04)


def test_ranks_by_hand() -> None:
    """Gaps of 1 and 3, each difference with standard error sqrt 2, c = 2: only gaps above 2.83 are sure."""
    best, worst = rank_bounds(np.array([1.0, 0.0, -3.0]), np.eye(3), 2.0)
    assert best.tolist() == [1, 1, 3]
    assert worst.tolist() == [2, 2, 3]
    best, worst = rank_bounds(np.zeros(3), np.eye(3), math.inf)
    assert (best.tolist(), worst.tolist()) == ([1, 1, 1], [3, 3, 3])


def test_a_busy_voter_is_not_a_crowd() -> None:
    """Votes 9, 1, 1, 1: 12^2 / 84 = 12/7 effective voters; one voter alone tells nothing of others."""
    assert effective_voters(np.array([9, 1, 1, 1])) == pytest.approx(12 / 7)
    assert effective_voters(np.array([5, 5, 5])) == pytest.approx(3)
    assert student(0.95, 1) == math.inf
    assert student(0.95, 11) == pytest.approx(2.228139, abs=1e-5)
    alone = section("all", table_of(("x", "y", "a", "1"), ("x", "y", "b", "1")), Settings())
    assert all(math.isinf(row.high) and math.isinf(row.low_all) and row.rank_worst == 2 for row in alone.rows)
    assert any("one person" in notice for notice in alone.notices)


def test_votes_of_the_prior_are_no_evidence() -> None:
    """Five voters, five wins: theta = +-x with 10 (1 - p) = 2s - 1, p = sigma(2x), s = sigma(x). In x the information is
    20 p(1-p) + 2 s(1-s), a voter's score 2(1-p), and the prior's 2 s(1-s) counts as noise."""
    found = section("all", table_of(*[("x", "y", "a")] * 5), Settings())
    x = (found.rows[0].rating - 1000) * math.log(10) / 400
    p, s = 1 / (1 + math.exp(-2 * x)), 1 / (1 + math.exp(-x))
    assert 10 * (1 - p) == pytest.approx(2 * s - 1)
    noise = 5 / 4 * 5 * (2 * (1 - p)) ** 2 + 2 * s * (1 - s)
    error = math.sqrt(noise) / (20 * p * (1 - p) + 2 * s * (1 - s))
    assert found.rows[0].high - found.rows[0].rating == pytest.approx(400 / math.log(10) * student(0.95, 5) * error)


def test_degrees_of_freedom_are_those_of_effective_voters() -> None:
    """Widths at two levels are to each other as the quantiles of t are."""
    rows = [("x", "y", outcome, str(voter)) for voter in range(8) for outcome in ("a", "b", "a")[voter % 2 :]]
    votes = table_of(*rows, *[("x", "y", outcome, "busy") for outcome in "ab" * 15])
    found = [section("all", votes, Settings(level=level)) for level in (0.5, 0.95)]
    effective = found[0].effective_voters
    assert effective == pytest.approx(50**2 / (30**2 + 4 * 3**2 + 4 * 2**2))
    narrow, wide = (one.rows[0].high - one.rows[0].low for one in found)
    assert wide / narrow == pytest.approx(student(0.95, effective) / student(0.5, effective))


def test_simultaneous_intervals_are_wider_and_the_bootstrap_agrees() -> None:
    votes = votes_of(np.linspace(0.6, -0.6, 4), 150, 20, np.random.default_rng(2), taste=0.5)
    for row in section("all", votes, Settings(bootstraps=2000)).rows:
        assert row.low_all < row.low < row.rating < row.high < row.high_all
        assert row.resampled_low is not None and row.resampled_high is not None
        assert row.resampled_high - row.resampled_low == pytest.approx(row.high - row.low, rel=0.12)
        assert row.resampled_low == pytest.approx(row.low, abs=0.1 * (row.high - row.low))

"""The test that may be read at any time: its evidence by hand, its errors exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln

from apps.arena.ratings.anytime import first_votes, log_evidence, verdict
from tests.apps.arena.simulated import table_of, votes_of


def test_evidence_by_hand() -> None:
    """One vote says nothing: 2 B(21, 20)/B(20, 20) = 2 * 20/40 = 1. Two wins: 4 * 20*21 / (40*41) = 42/41."""
    assert log_evidence(1, 0) == pytest.approx(0)
    assert math.exp(log_evidence(2, 0)) == pytest.approx(42 / 41)
    assert math.exp(log_evidence(1, 1)) == pytest.approx(4 * 20 * 20 / (40 * 41))
    assert verdict(60, 10, 0.05) == "ahead"
    assert verdict(10, 60, 0.05) == "behind"
    assert verdict(30, 25, 0.05) == "open"


@given(st.integers(0, 500), st.integers(0, 500))
def test_a_fair_coin_adds_no_evidence_on_average(wins: int, losses: int) -> None:
    """E is a martingale: the mean of its next values is its value."""
    following = (math.exp(log_evidence(wins + 1, losses)) + math.exp(log_evidence(wins, losses + 1))) / 2
    assert following == pytest.approx(math.exp(log_evidence(wins, losses)), rel=1e-9)
    assert log_evidence(wins, losses) == log_evidence(losses, wins)


def ever_declared(share: float, votes: int, declares: np.ndarray) -> float:
    """Return the exact probability that somebody who looks after each of `votes` votes ever declares.

    declares: (votes + 1, votes + 1) bool, by numbers of votes and wins.
    """
    alive, stopped = np.zeros(votes + 2), 0.0
    alive[0] = 1.0
    for n in range(1, votes + 1):
        alive[1:] = share * alive[:-1] + (1 - share) * alive[1:]
        alive[0] *= 1 - share
        now = np.flatnonzero(declares[n])
        stopped += alive[now].sum()
        alive[now] = 0.0
    return stopped


def test_false_positives_when_looking_after_every_vote() -> None:
    """Exact for 2000 votes: this test stays below 5 %, a z test at 1.96 is wrong about half of the time, and no
    difference in the wrong direction is declared more often."""
    n, k = np.arange(2001)[:, None], np.arange(2001)[None, :]
    possible = k <= n
    ours = possible & (log_evidence(np.minimum(k, n), np.maximum(n - k, 0)) >= math.log(20))
    naive = possible & (n >= 10) & (np.abs(k - n / 2) >= 1.96 * np.sqrt(n) / 2)
    error = ever_declared(0.5, 2000, ours)
    assert 0.02 < error < 0.05
    assert ever_declared(0.5, 2000, naive) > 0.4
    assert ever_declared(0.48, 2000, ours & (k > n / 2)) < error / 2
    assert ever_declared(0.6, 2000, ours & (k > n / 2)) > 0.999


def test_first_votes_count_one_per_voter_and_pair() -> None:
    """Voter 1: a tie, then x over y, then y over x: one win of x. Voter 2, shown the other way round: y over x."""
    votes = table_of(
        ("x", "y", "tie", "1"),
        ("x", "y", "a", "1"),
        ("x", "y", "b", "1"),
        ("y", "x", "a", "2"),
        ("x", "z", "both_bad", "2"),
        ("z", "x", "b", "2"),
        ("x", "z", "b", "3"),
    )
    assert first_votes(votes).tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]


def test_first_votes_do_not_depend_on_the_order_of_rows() -> None:
    votes = votes_of(np.zeros(4), 30, 40, np.random.default_rng(0), both_bad=0.1)
    votes = votes.in_order()
    again = votes.take(np.random.default_rng(1).permutation(len(votes)))
    assert np.array_equal(first_votes(votes), first_votes(again.in_order()))
    assert np.array_equal(first_votes(votes), first_votes(votes.swap()))
    assert (first_votes(votes) + first_votes(votes).T).max() <= 30
    by_hand = betaln(25, 22) - betaln(20, 20) + 7 * math.log(2)
    assert log_evidence(np.array([5]), np.array([2]))[0] == pytest.approx(by_hand)

"""The official tie rules on tables made by hand, and against their code's loops written out here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.readers.rankings import open_rankings
from rewards.benchmark.rules import RULES, Marks, choose_threshold, decisive, inversions, pooled, threshold

REAL = Path(__file__).parents[3] / "shared" / "data" / "imagereward" / "test.json"


def table(truths: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]) -> tuple[np.ndarray, ...]:
    """Return label, lead and ranking of all pairs; higher is better in both."""
    rows = [
        (np.sign(t[i] - t[j]), s[i] - s[j], k)
        for k, (t, s) in enumerate(zip(truths, scores, strict=True))
        for i, j in combinations(range(len(t)), 2)
    ]
    label, lead, ranking = (np.array(column) for column in zip(*rows, strict=True))
    return label, lead, ranking


def mean(marks: Marks) -> float:
    return float(marks.values.mean())


def test_pickscores_rule_by_hand() -> None:
    """t = .2: leads .5, .1, -.1, -.5 are said as first, tie, tie, second.

    Against the label "first": 1, 1/2, 1/2, 0. Against a tie: 1/2, 1, 1, 1/2.
    """
    lead = np.array([0.5, 0.1, -0.1, -0.5] * 2)
    label = np.array([1] * 4 + [0] * 4)
    assert threshold(label, lead, np.arange(8), 0.2).values.tolist() == [1, 0.5, 0.5, 0, 0.5, 1, 1, 0.5]


def test_at_threshold_0_only_equality_is_a_tie_and_at_1_everything() -> None:
    label, lead = np.array([1, 1, 0, -1]), np.array([0.0, 1e-9, 0.0, 1.0])
    assert threshold(label, lead, np.arange(4), 0.0).values.tolist() == [0.5, 1, 1, 0]
    assert threshold(label, lead, np.arange(4), 1.0).values.tolist() == [0.5, 0.5, 1, 0.5]


def test_a_lead_on_the_threshold_is_a_tie() -> None:
    assert threshold(np.array([1]), np.array([0.5]), np.array([0]), 0.5).values.tolist() == [0.5]


def test_the_best_threshold_and_of_equals_the_smallest() -> None:
    """Ties at leads up to .35, wins from .55 on: .4 and .5 are both perfect."""
    label = np.array([0, 0, 1, -1])
    assert choose_threshold(label, np.array([0.35, -0.3, 0.55, -0.9])) == 0.4
    assert choose_threshold(np.array([1, -1]), np.array([0.1, -0.1])) == 0.0


def test_hpdv2s_rule_by_hand() -> None:
    """Truth a > b > c, said b > a > c: one inversion of three. The second ranking ties its labels: never wrong."""
    label, lead, ranking = table([[3, 2, 1], [1, 1]], [[2, 3, 1], [5, 9]])
    marks = inversions(label, lead, ranking)
    assert marks.values == pytest.approx([2 / 3, 1]) and marks.ranking.tolist() == [0, 1]
    assert mean(inversions(*table([[2, 1]], [[0, 0]]))) == 0.5


def test_rankings_of_any_size_count_alike_under_hpdv2s_rule_and_pairs_under_imagerewards() -> None:
    """One of three pairs wrong, and one of one: the mean of 2/3 and 0, or 2 of 4."""
    rows = table([[3, 2, 1], [2, 1]], [[2, 3, 1], [1, 2]])
    assert mean(inversions(*rows)) == pytest.approx(1 / 3) and mean(pooled(*rows)) == 0.5


def test_imagerewards_rule_by_hand() -> None:
    """Pairs of truth 2, 2, 1: the tie is left out; of the others one is right, one has equal scores: wrong."""
    marks = pooled(*table([[2, 2, 1]], [[5, 3, 3]]))
    assert marks.values.tolist() == [1, 0]
    assert decisive(*table([[2, 2, 1]], [[5, 3, 3]])).values.tolist() == [1, 0.5]


value = st.integers(0, 4)
rankings = st.lists(st.lists(st.tuples(value, value), min_size=2, max_size=6), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(rankings)
def test_the_rules_equal_the_loops_of_the_published_code(rows: list[list[tuple[int, int]]]) -> None:
    truths, scores = [[t for t, _ in row] for row in rows], [[s for _, s in row] for row in rows]
    label, lead, ranking = table(truths, scores)

    # ImageReward's acc: ranks (lower is better) against rewards.
    total = right = 0
    for t, s in zip(truths, scores, strict=True):
        rank = [-x for x in t]
        for i in range(len(rank)):
            for j in range(i + 1, len(rank)):
                if rank[i] != rank[j]:
                    total += 1
                    right += s[i] < s[j] if rank[i] > rank[j] else s[i] > s[j]
    marks = pooled(label, lead, ranking)
    assert len(marks.values) == total and marks.values.sum() == right

    # HPSv2's inversion_score of ranks without ties of their own (0 is best), which argsort makes.
    credits = []
    for t, s in zip(truths, scores, strict=True):
        if len(set(s)) < len(s):
            continue
        said, rank = [sorted(s, reverse=True).index(x) for x in s], [-x for x in t]
        n, wrong = len(rank), 0
        for i in range(n - 1):
            for j in range(i + 1, n):
                wrong += (said[i] > said[j] and rank[i] < rank[j]) or (said[i] < said[j] and rank[i] > rank[j])
        credits.append(1 - wrong / (n * (n - 1) / 2))
    distinct = [k for k, s in enumerate(scores) if len(set(s)) == len(s)]
    found = inversions(label, lead, ranking).values
    assert found[distinct] == pytest.approx(credits)

    # PickScore's calc_acc, over probabilities of two images.
    for t in (0.0, 0.3, 1.0):
        said = np.tanh(lead / 2)
        expected = []
        for truth, d in zip(label, said, strict=True):
            human = "tie" if truth == 0 else "0" if truth > 0 else "1"
            model = "tie" if abs(d) <= t else "0" if d > 0 else "1"
            expected.append(1 if human == model else 0.5 if "tie" in (human, model) else 0)
        assert threshold(label, said, ranking, t).values.tolist() == expected


@settings(max_examples=40, deadline=None)
@given(rankings)
def test_which_side_comes_first_does_not_matter(rows: list[list[tuple[int, int]]]) -> None:
    label, lead, ranking = table([[t for t, _ in row] for row in rows], [[s for _, s in row] for row in rows])
    for rule in RULES.values():
        assert rule.mark(label, lead, ranking).values == pytest.approx(rule.mark(-label, -lead, ranking).values)


@pytest.mark.skipif(not REAL.is_file(), reason="the published test file is not there")
def test_the_published_rankings_mark_themselves_right_and_their_reverse_wrong() -> None:
    truths = [ranking.scores for ranking in open_rankings(REAL)]
    own = table(truths, truths)
    assert mean(pooled(*own)) == mean(inversions(*own)) == mean(decisive(*own)) == 1
    turned = table(truths, [[-s for s in scores] for scores in truths])
    assert mean(pooled(*turned)) == mean(decisive(*turned)) == 0
    ties = int((own[0] == 0).sum())
    assert len(pooled(*own).values) == 7230 - ties and mean(inversions(*turned)) < 0.2
    rng = np.random.default_rng(0)
    chance = table(truths, [rng.normal(size=len(t)).tolist() for t in truths])
    assert mean(pooled(*chance)) == pytest.approx(0.5, abs=0.03)

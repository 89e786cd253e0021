"""Ratings: values by hand, evalica and scipy as second implementations, what is refused, what must not matter."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from apps.arena.ratings import bootstrap
from apps.arena.ratings.comparability import bounded, groups, took_credit
from apps.arena.ratings.control import control
from apps.arena.ratings.davidson import moments
from apps.arena.ratings.fit import Counts, fit
from apps.arena.ratings.intervals import voter_scores
from apps.arena.ratings.robustness import both_bad_rates, concentration, side_bias, voters_to_flip, votes_to_flip
from apps.arena.ratings.table import BOTH_BAD, VoteLog, VoteTable
from apps.arena.ratings.tally import Tally, cells
from palate.errors import UserError
from tests.apps.arena.simulated import table_of, votes_of


def counts_of(votes: VoteTable) -> Counts:
    return Counts.of_cells(cells(votes))


def pair(wins: float, losses: float, ties: float = 0.0) -> Counts:
    """Return the counts of X (0) against Y (1), X always shown as A."""
    table = np.zeros((2, 2, 4))
    table[0, 1, :3] = wins, losses, ties
    return Counts.of_cells(table)


random_cells = st.integers(2, 5).flatmap(
    lambda m: st.lists(st.integers(0, 6), min_size=m * m * 3, max_size=m * m * 3).map(
        lambda flat: np.array(flat).reshape(m, m, 3) * (1 - np.eye(m, dtype=int))[..., None]
    )
)


def test_three_wins_to_one_are_odds_of_three() -> None:
    """theta_X - theta_Y = ln 3, so 400 log10(3) = 190.85 points apart around 1000."""
    assert fit(pair(3, 1)).elo() == pytest.approx([1000 + 95.4242509, 1000 - 95.4242509])


def test_a_tie_is_half_a_win_each() -> None:
    """2 wins, 1 loss and 2 ties are credit 3 to 2: ln 1.5."""
    theta = fit(pair(2, 1, 2)).theta
    assert theta[0] - theta[1] == pytest.approx(math.log(1.5))


def test_davidson_by_hand() -> None:
    """With one pair the model has as many parameters as the data: delta = ln(w/l), nu = t / sqrt(w l)."""
    found = fit(pair(8, 2, 5), ties="davidson")
    assert found.theta[0] - found.theta[1] == pytest.approx(math.log(4))
    assert math.exp(found.log_nu) == pytest.approx(5 / 4)


def test_side_by_hand() -> None:
    """X as A wins 6 of 8, Y as A 4 of 8: delta + gamma = ln 3 and -delta + gamma = 0, so both are ln(3)/2."""
    table = np.zeros((2, 2, 4))
    table[0, 1, :2], table[1, 0, :2] = (6, 2), (4, 4)
    found = fit(Counts.of_cells(table), side=True)
    assert found.side == pytest.approx(math.log(3) / 2)
    assert found.theta[0] - found.theta[1] == pytest.approx(math.log(3) / 2)


def test_the_prior_is_votes_against_an_imagined_model() -> None:
    """Three wins, no loss, prior 1/2: theta = +-x with 3(1 - s(2x)) + (1 - 2 s(x))/2 = 0, the root by bisection."""
    low, high = 0.0, 10.0
    for _ in range(60):
        x = (low + high) / 2
        slope = 3 * (1 - 1 / (1 + math.exp(-2 * x))) + 0.5 * (1 - 2 / (1 + math.exp(-x)))
        low, high = (x, high) if slope > 0 else (low, x)
    assert fit(pair(3, 0), prior=0.5).theta == pytest.approx([x, -x])


def test_moments_are_those_of_the_distribution() -> None:
    """Sums over the three outcomes, at ordinary and at extreme odds (where a tie may not vanish into 0 * infinity)."""
    for delta, log_nu in product((-3.0, 0.0, 0.4, 2.0), (-1.0, 0.7)):
        weights = np.array([math.exp(delta / 2), math.exp(-delta / 2), math.exp(log_nu)])
        p, y, t = weights / weights.sum(), np.array([1, 0, 0.5]), np.array([0, 0, 1])
        now = moments(np.array(delta), log_nu, "davidson")
        assert now.mean == pytest.approx(p @ y)
        assert now.variance == pytest.approx(p @ y**2 - (p @ y) ** 2)
        assert now.tie == pytest.approx(p @ t)
        assert now.covariance == pytest.approx(p @ (y * t) - (p @ y) * (p @ t))
    far = moments(np.array([-2000.0, 2000.0]), 1.0, "davidson")
    assert far.mean == pytest.approx([0, 1])
    assert np.isfinite(np.concatenate(far)).all()


@given(random_cells)
@settings(max_examples=60, deadline=None)
def test_bradley_terry_equals_evalica(table: np.ndarray) -> None:
    import evalica

    counts = Counts.of_cells(table)
    if not bounded(counts.credit, counts.decided, counts.ties, "half"):
        return
    names = [f"m{i}" for i in range(len(table))]
    kinds = [evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw]
    rows = [(a, b, k, table[a, b, k]) for a, b, k in np.argwhere(table).tolist()]
    result = evalica.bradley_terry(
        [names[a] for a, *_ in rows],
        [names[b] for _, b, *_ in rows],
        [kinds[k] for *_, k, _ in rows],
        weights=[float(w) for *_, w in rows],
        tolerance=1e-12,
        limit=5000,
    )
    if result.iterations >= 5000:  # its fixed-point iteration is slow where wins are lopsided; Newton's is not
        return
    theirs = np.log(result.scores.loc[names].to_numpy())
    assert fit(counts).theta == pytest.approx(theirs - theirs.mean(), abs=1e-5)


@given(random_cells)
@settings(max_examples=40, deadline=None)
def test_davidson_equals_a_general_optimiser(table: np.ndarray) -> None:
    """scipy's BFGS on the likelihood written with logarithms of three weights."""
    counts, m = Counts.of_cells(table), len(table)
    ties = table[..., 2].sum()
    if not ties or not bounded(counts.credit, counts.decided, counts.ties, "davidson"):
        return

    def loss(x: np.ndarray) -> float:
        delta = x[:m, None] - x[None, :m] + x[m + 1]
        powers = np.stack([delta / 2, -delta / 2, np.full_like(delta, x[m])], axis=-1)
        return float((table * (np.log(np.exp(powers).sum(-1, keepdims=True)) - powers)).sum() + x[:m].sum() ** 2)

    try:
        ours = fit(counts, ties="davidson", side=True)
    except UserError as error:
        assert "One side won" in str(error) or "cannot be told" in str(error)
        return
    theirs = minimize(loss, np.zeros(m + 2), method="BFGS", options={"gtol": 1e-8})
    mine = np.array([*ours.theta, ours.log_nu, ours.side])
    assert loss(mine) <= theirs.fun + 1e-9
    assert mine == pytest.approx(theirs.x, abs=2e-3)


@given(random_cells, st.sampled_from(["half", "davidson"]))
@settings(max_examples=80, deadline=None)
def test_bounded_is_fords_condition(table: np.ndarray, ties: str) -> None:
    """By definition: every split of the models in two has credit in both directions."""
    counts, m = Counts.of_cells(table), len(table)
    won = took_credit(counts.credit, counts.decided, counts.ties, ties)
    by_hand = np.zeros((m, m), dtype=bool)
    for a, b, k in np.argwhere(table).tolist():
        by_hand[a, b] |= k == 0 or (k == 2 and ties == "half")
        by_hand[b, a] |= k == 1 or (k == 2 and ties == "half")
    assert np.array_equal(won, by_hand)
    splits = [np.array(s, dtype=bool) for s in product((0, 1), repeat=m) if 0 < sum(s) < m]
    expected = all(by_hand[np.ix_(s, ~s)].any() for s in splits)
    assert bounded(counts.credit, counts.decided, counts.ties, ties) == expected


def test_infinite_ratings_are_refused_unless_bounded() -> None:
    with pytest.raises(UserError, match="no finite ratings"):
        fit(pair(3, 0))
    with pytest.raises(UserError, match="ties and votes with a winner"):
        fit(pair(3, 1), ties="davidson")
    apart = np.zeros((4, 4, 4))
    apart[0, 1, :2] = apart[2, 3, :2] = 5
    with pytest.raises(UserError, match="never compared"):
        fit(Counts.of_cells(apart))
    assert groups(Counts.of_cells(apart).decided).tolist() == [0, 0, 1, 1]
    assert np.isfinite(fit(Counts.of_cells(apart), prior=0.5).theta).all()
    always_a = np.zeros((2, 2, 4))
    always_a[0, 1, 0] = always_a[1, 0, 0] = 5
    for counts in (pair(3, 1), pair(2, 2)):
        with pytest.raises(UserError, match="cannot be told"):
            fit(counts, side=True)
    with pytest.raises(UserError, match="One side won"):
        fit(Counts.of_cells(always_a), side=True)
    with pytest.raises(UserError, match="did you mean 'half'"):
        fit(pair(3, 1), ties="hlaf")  # type: ignore[arg-type]


@pytest.mark.parametrize("ties", ["half", "davidson"])
def test_swapping_sides_changes_no_rating_and_turns_the_side(ties: str) -> None:
    votes = votes_of(np.array([0.5, 0.0, -0.5]), 40, 20, np.random.default_rng(0), side=0.3)
    there, back = (fit(counts_of(v), ties=ties, side=True) for v in (votes, votes.swap()))
    assert there.theta == pytest.approx(back.theta)
    assert there.side == pytest.approx(-back.side)


def test_davidson_recovers_what_half_wins_compress() -> None:
    """200 000 votes, a third of them ties: the gap of 1.6 comes back, while half wins keep about four fifths."""
    votes = votes_of(np.array([0.8, -0.8]), 200, 1000, np.random.default_rng(1), log_nu=0.0)
    davidson, half = (fit(counts_of(votes), ties=ties).theta for ties in ("davidson", "half"))
    assert davidson[0] - davidson[1] == pytest.approx(1.6, abs=0.03)
    assert 0.6 < (half[0] - half[1]) / 1.6 < 0.85


def test_boards_fitted_together_equal_boards_fitted_alone() -> None:
    rng = np.random.default_rng(2)
    tables = rng.integers(1, 9, size=(5, 4, 4, 4)) * (1 - np.eye(4, dtype=int))[..., None]
    prior = np.array([0.0, 0.5, 0.0, 2.0, 0.0])
    together = fit(Counts.of_cells(tables), ties="davidson", side=True, prior=prior)
    for i in range(5):
        alone = fit(Counts.of_cells(tables[i]), ties="davidson", side=True, prior=prior[i])
        assert together.theta[i] == pytest.approx(alone.theta, abs=1e-8)
        assert together.log_nu[i] == pytest.approx(alone.log_nu, abs=1e-8)
        assert together.bread()[i] == pytest.approx(alone.bread(), abs=1e-8)


def test_control_equals_fit_where_only_the_side_is_controlled() -> None:
    """Rows with Newton's method on one side, counts on the other."""
    votes = votes_of(np.array([0.6, 0.1, -0.7]), 60, 25, np.random.default_rng(3), side=0.4, taste=0.5)
    rows, counts = control(votes, [], ties="davidson"), fit(counts_of(votes), ties="davidson", side=True)
    assert rows.theta == pytest.approx(counts.theta, abs=1e-7)
    assert rows.side == pytest.approx(float(counts.side), abs=1e-7)
    assert rows.log_nu == pytest.approx(float(counts.log_nu), abs=1e-7)
    assert rows.bread == pytest.approx(counts.bread(), abs=1e-8)
    columns = (votes.model_a, votes.model_b, votes.outcome, votes.voter, len(votes.voters))
    assert rows.scores == pytest.approx(voter_scores(counts, *columns), abs=1e-6)


def test_control_finds_the_pull_of_a_measure_and_takes_it_from_the_ratings() -> None:
    """Model 0 is no better, but about 1.5 longer: without control it leads, with control it does not."""
    rng = np.random.default_rng(4)
    votes = votes_of(np.zeros(3), 300, 50, rng, measures=1)
    lengths = [rng.normal(size=len(votes)) + 1.5 * (side == 0) for side in (votes.model_a, votes.model_b)]
    a_wins = rng.random(len(votes)) < 1 / (1 + np.exp(-0.8 * (lengths[0] - lengths[1])))
    votes = replace(
        votes,
        outcome=np.where(a_wins, 0, 1).astype(np.int8),
        measures_a=lengths[0][:, None],
        measures_b=lengths[1][:, None],
    )
    assert fit(counts_of(votes)).elo()[0] > 1080
    found = control(votes, ["measure 0"])
    assert found.beta[0] / found.scales[0] == pytest.approx(0.8, abs=0.05)
    assert abs(found.theta[0]) < 3.5 * math.sqrt(found.covariance[0, 0])


def test_control_refuses_what_cannot_be_told() -> None:
    votes = votes_of(np.zeros(2), 20, 10, np.random.default_rng(5), measures=1)
    with pytest.raises(UserError, match="did you mean 'measure 0'"):
        control(votes, ["measure 1"])
    same = replace(votes, measures_a=votes.measures_b)
    with pytest.raises(UserError, match="same on both sides"):
        control(same, ["measure 0"])
    of_model = replace(votes, measures_a=votes.model_a[:, None] * 1.0, measures_b=votes.model_b[:, None] * 1.0)
    with pytest.raises(UserError, match="cannot be told apart"):
        control(of_model, ["measure 0"])
    for wins in (1, 2):
        with pytest.raises(UserError, match="cannot be told apart"):
            control(table_of(*[("x", "y", "a")] * wins, ("x", "y", "b")), [])
    unknown = replace(votes, measures_a=np.full_like(votes.measures_a, np.nan))
    with pytest.raises(UserError, match="has all of the measures"):
        control(unknown, ["measure 0"])
    some = replace(votes, measures_a=np.where(np.arange(200)[:, None] < 30, np.nan, votes.measures_a))
    assert control(some, ["measure 0"]).missing == np.count_nonzero(votes.outcome[:30] != BOTH_BAD)


def test_resamples_keep_votes_together_by_voter() -> None:
    """Two voters, one all for X and one all for Y: each resample has 0, 10 or 20 wins of X, 10 half of the time."""
    votes = table_of(*[("x", "y", "a", "one")] * 10, *[("x", "y", "b", "two")] * 10)
    pooled = bootstrap.pool(votes, rng=np.random.default_rng(0))
    drawn = bootstrap.resample_voters(pooled.counts, 2000, np.random.default_rng(1))
    assert sorted(set(drawn[:, 0])) == [0, 10, 20]
    assert np.mean(drawn[:, 0] == 10) == pytest.approx(0.5, abs=0.05)
    single = bootstrap.resample_votes(pooled, 2000, np.random.default_rng(2))
    assert single.sum(1).tolist() == [20] * 2000
    assert single[:, 0].std() == pytest.approx(math.sqrt(20) / 2, rel=0.1)  # binomial


def test_refitting_all_votes_gives_the_estimate_back() -> None:
    votes = votes_of(np.array([0.5, 0.0, -0.5]), 30, 20, np.random.default_rng(6), both_bad=0.1)
    pooled = bootstrap.pool(votes, rng=np.random.default_rng(0))
    for ties in ("half", "davidson"):
        found = fit(counts_of(votes), ties=ties)
        again = bootstrap.refit(pooled, pooled.counts.sum(0)[None], found, 0.0)
        assert again.theta[0] == pytest.approx(found.theta, abs=1e-8)


def test_resamples_survive_without_ties_or_connections() -> None:
    votes = table_of(("x", "y", "a"), ("x", "y", "b"), ("y", "z", "a"), ("y", "z", "b"), ("x", "y", "tie"))
    pooled = bootstrap.pool(votes, rng=np.random.default_rng(0))
    drawn = bootstrap.resample_voters(pooled.counts, 200, np.random.default_rng(1))
    assert np.isfinite(bootstrap.refit(pooled, drawn, fit(counts_of(votes), ties="davidson"), 0.0).theta).all()


def test_votes_to_flip_are_enough_and_none_too_many() -> None:
    votes = votes_of(np.array([0.6, 0.3, 0.0, -0.5]), 60, 20, np.random.default_rng(7))
    for ties in ("half", "davidson"):
        counts = counts_of(votes)
        found = fit(counts, ties=ties)
        order = np.argsort(-found.theta)
        for (upper, lower), needed in zip(pairwise(order), votes_to_flip(counts, found, 0.0), strict=False):
            for votes_added, flips in ((needed, True), (needed - 1, False)):
                table = cells(votes)
                table[lower, upper, 0] += votes_added
                theta = fit(Counts.of_cells(table), ties=ties).theta
                assert (theta[lower] > theta[upper]) == flips


def test_voters_to_flip_finds_the_ballot_stuffer() -> None:
    """Ten voters split evenly, one gave x 30 votes: leaving one voter out exchanges x and y."""
    fair = [("x", "y", outcome, f"fair {i}") for i in range(10) for outcome in ("a", "b", "b")]
    votes = table_of(*fair, *[("x", "y", "a", "stuffer")] * 30)
    found = fit(counts_of(votes))
    scores = voter_scores(found, votes.model_a, votes.model_b, votes.outcome, votes.voter, len(votes.voters))
    assert voters_to_flip(found.theta, found.bread(), scores) == [1]


def test_concentration_and_side_by_hand() -> None:
    """Votes 3, 1, 1 of three voters: top 3/5, effective 25/11. Side A won 3 of the 4 with a winner."""
    votes = table_of(
        ("x", "y", "a", "1"), ("x", "y", "a", "1"), ("y", "x", "b", "1"), ("x", "y", "a", "2"), ("x", "y", "tie", "3")
    )
    spread = concentration(votes)
    assert (spread.voters, spread.top, spread.top_ten) == (3, 0.6, 1.0)
    assert spread.effective == pytest.approx(25 / 11)
    assert side_bias(votes, 0.95).value == 0.75


def test_both_bad_is_no_tie_and_counts_for_both() -> None:
    votes = table_of(("x", "y", "a"), ("x", "y", "b"), ("x", "z", "both_bad"), ("y", "z", "a"), ("z", "y", "a"))
    rates = {name: rate.value for name, rate in zip(votes.models, both_bad_rates(votes, 0.95), strict=True)}
    assert rates == {"x": pytest.approx(1 / 3), "y": 0.0, "z": pytest.approx(1 / 3)}
    assert counts_of(votes).decided.sum() == 4
    assert counts_of(votes).ties.sum() == 0


def test_a_tally_adds_takes_back_and_grows() -> None:
    votes = votes_of(np.array([0.5, 0.0, -0.5]), 20, 10, np.random.default_rng(8), both_bad=0.1)
    names = ["a", "b", "tie", "both_bad"]
    tally = Tally(votes.models[:2])
    tally.add_model(votes.models[2])
    rows = [
        (votes.models[a], votes.models[b], names[o])
        for a, b, o in zip(votes.model_a, votes.model_b, votes.outcome, strict=True)
    ]
    for row in [*rows, rows[0]]:
        tally.add(*row)
    tally.add(*rows[0], times=-1)
    one, other = tally.standing(), Tally.of(votes).standing()
    assert one.theta == pytest.approx(other.theta)
    assert one.covariance == pytest.approx(other.covariance)
    assert one.battles.sum() == 2 * len(votes)
    with pytest.raises(UserError, match="to take back"):
        Tally(["x", "y"]).add("x", "y", "a", times=-1)
    with pytest.raises(UserError, match="Unknown model"):
        Tally(["x", "y"]).add("x", "z", "a")


def test_a_log_grows_into_the_table_and_flags_can_be_lifted() -> None:
    log = VoteLog(covariates=("length",))
    for i in range(100):
        log.append(model_a="x", model_b="y", outcome="a", voter=f"v{i % 7}", created=float(i), measures_a={"length": i})
    before = log.table()
    log.set_flags(3, ["gold", "excluded"])
    assert len(before) == len(log) == 100
    assert before.left_out() == {}
    assert log.table().left_out() == {"excluded": 1, "gold": 1}
    assert len(log.table().counted()) == 99
    log.set_flags(3, ())
    assert len(log.table().counted()) == 100
    assert before.measures_a[:3, 0].tolist() == [0, 1, 2]
    assert np.isnan(before.measures_b).all()
    for wrong in ({"model_b": "x"}, {"outcome": "c"}, {"flags": ["golden"]}, {"created": "yesterday"}):
        with pytest.raises(UserError):
            log.append(**{"model_a": "x", "model_b": "y", "outcome": "a", "voter": "v", **wrong})  # type: ignore[arg-type]
    assert len(log) == 100


def test_codes_out_of_range_are_refused() -> None:
    votes = table_of(("x", "y", "a"))
    with pytest.raises(UserError, match="model_a"):
        replace(votes, model_a=np.array([2]))
    with pytest.raises(UserError, match="with itself"):
        replace(votes, model_a=votes.model_b)
    with pytest.raises(UserError, match="shape"):
        replace(votes, voter=np.array([0, 0]))

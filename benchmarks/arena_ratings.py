"""The arena's ratings measured: `python -m benchmarks.arena speed|resolve|coverage|peeking`.

speed: a full board with 1000 resamples over a million votes on 20 models, and evalica on the same votes.
resolve: simulated votes until the order of 20 models is known, by matchmaking and by uniform pairs.
coverage: how often nominal 95 % intervals hold the truth when voters have tastes.
peeking: false positives of the test of a pair when somebody looks after every vote.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date

import numpy as np

from apps.arena.matchmaking import mixture
from apps.arena.ratings import bootstrap
from apps.arena.ratings.anytime import log_evidence
from apps.arena.ratings.board import board
from apps.arena.ratings.davidson import Ties, moments
from apps.arena.ratings.fit import WEAK_PRIOR, Counts, fit
from apps.arena.ratings.intervals import contrasts, effective_voters, sandwich, student, sup_t, voter_scores
from apps.arena.ratings.table import BOTH_BAD, TIE, A, B, VoteTable
from apps.arena.ratings.tally import Standing, cells
from benchmarks.measuring import machine, write_section

TITLE = "## Arena: the board"


def simulated(
    strengths: np.ndarray, votes_of_voter: np.ndarray, rng: np.random.Generator, *, taste: float = 0.0, bad: float = 0.0
) -> VoteTable:
    """Return votes on random pairs, about a fifth of them ties. taste: deviation of a voter's own strengths."""
    m, voters, n = len(strengths), len(votes_of_voter), int(votes_of_voter.sum())
    voter = np.repeat(np.arange(voters), votes_of_voter)
    a = rng.integers(0, m, n)
    b = (a + rng.integers(1, m, n)) % m
    delta = strengths[a] - strengths[b]
    if taste:
        own = taste * rng.normal(size=(voters, m))
        delta = delta + own[voter, a] - own[voter, b]
    now = moments(delta, -0.5, "davidson")
    draw = rng.random(n)
    outcome = np.where(draw < now.mean - now.tie / 2, A, np.where(draw < now.mean + now.tie / 2, TIE, B))
    outcome[rng.random(n) < bad] = BOTH_BAD
    order = rng.permutation(n)
    nothing = np.zeros(n, np.int32)
    return VoteTable(
        tuple(f"model {i:02}" for i in range(m)), tuple(f"voter {i:06}" for i in range(voters)), ("",), ("",),
        a[order].astype(np.int32), b[order].astype(np.int32), outcome[order].astype(np.int8),
        voter[order].astype(np.int32), nothing, nothing, np.arange(n, dtype=float), nothing.astype(np.uint8),
        (), np.empty((n, 0)), np.empty((n, 0)),
    )  # fmt: skip


def best_of(runs: int, task: Callable[[], object]) -> float:
    """Return the least processor seconds of `runs` runs: on one core, what a clock would show if nobody else computed."""
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        task()
        seconds.append(time.process_time() - start)
    return min(seconds)


def speed(votes: int = 1_000_000, models: int = 20, resamples: int = 1000, write: bool = False) -> None:
    """Print seconds of the board and of its parts, and the ratio to evalica; write: into RESULTS.md, too."""
    import evalica

    rng = np.random.default_rng(0)
    voters = np.full(votes // 50, 50)
    table = simulated(0.6 * rng.normal(size=models), voters, rng, bad=0.05)
    full = best_of(3, lambda: board(table, bootstraps=resamples))
    print(f"full board, {votes:,} votes, {models} models, {resamples} resamples by voter: {full:.2f} s of one core")
    counts = Counts.of_cells(cells(table))
    fitted = 1e3 * best_of(5, lambda: fit(counts, ties="davidson"))
    print(f"  one fit from counts: {fitted:.1f} ms")

    def same_work() -> None:
        found = fit(Counts.of_cells(cells(table)))
        pooled = bootstrap.pool(table, rng=np.random.default_rng(0))
        draws = bootstrap.resample_votes(pooled, resamples, np.random.default_rng(1))
        np.quantile(bootstrap.refit(pooled, draws, found, 0.0).theta, [0.025, 0.975], axis=0)

    ours = best_of(3, same_work)
    print(f"  Bradley-Terry and {resamples} resamples of votes, the work of evalica.bootstrap: {ours:.2f} s")

    decided = table.outcome != BOTH_BAD
    xs = np.array(table.models, dtype=object)[table.model_a[decided]].tolist()
    ys = np.array(table.models, dtype=object)[table.model_b[decided]].tolist()
    kinds = [evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw]
    winners = [kinds[k] for k in table.outcome[decided].tolist()]
    one = best_of(2, lambda: evalica.bradley_terry(xs, ys, winners))
    few = 4
    drawn = best_of(
        1,
        lambda: evalica.bootstrap(
            evalica.bradley_terry, xs, ys, winners, n_resamples=few, bootstrap_method="percentile", random_state=0
        ),
    )
    theirs = one + max(drawn - one, 0.0) / few * resamples
    print(
        f"evalica {evalica.__version__}: one fit {one:.2f} s; its percentile bootstrap, {few} resamples, {drawn:.1f} s,"
    )
    print(
        f"  so about {theirs:.0f} s for {resamples}: {theirs / ours:.0f} times ours, {theirs / full:.0f} times the board"
    )
    if not write:
        return
    lines = [
        f"{date.today()}, {machine('cpu')}, seconds of the processor. {votes:,} simulated votes on {models} models, "
        f"{resamples} resamples. evalica {evalica.__version__}: from {few} resamples of its percentile bootstrap.",
        "",
        "| | measured | aim |",
        "|---|---|---|",
        f"| full board, resampled by voter, s | {full:.2f} | <= 1 |",
        f"| one fit from counts, ms | {fitted:.1f} | |",
        f"| Bradley-Terry with resamples of votes, the work of evalica's bootstrap, s | {ours:.2f} | |",
        f"| evalica's bootstrap, s | {theirs:.0f} | |",
        f"| evalica's time in ours, equal work | {theirs / ours:.0f} times | |",
        f"| evalica's time in that of the full board | {theirs / full:.0f} times | |",
    ]
    write_section(TITLE, "\n".join(lines))


def resolve(models: int = 20, runs: int = 40, batch: int = 250, most: int = 30_000) -> None:
    """Print votes until few pairs of models stand in the wrong order, by matchmaking and by uniform pairs."""
    shares = {rule: np.zeros(most // batch) for rule in ("matchmaking", "uniform")}
    upper = np.triu_indices(models, 1)
    for run in range(runs):
        for rule, curve in shares.items():
            rng = np.random.default_rng([run, rule == "uniform"])
            strengths = 0.6 * np.random.default_rng(run).normal(size=models)
            truth = strengths[upper[0]] > strengths[upper[1]]
            table = np.zeros((models, models, 4))
            found = fit(Counts.of_cells(table), prior=WEAK_PRIOR)
            for step in range(most // batch):
                chances = np.full(len(upper[0]), 1 / len(upper[0]))
                if rule == "matchmaking":
                    battles = table.sum(-1)
                    where = Standing(tuple(map(str, range(models))), found.theta, found.bread(), battles + battles.T)
                    chances = mixture(where).probability[upper]
                drawn = rng.multinomial(batch, chances / chances.sum())
                now = moments(strengths[upper[0]] - strengths[upper[1]], -0.5, "davidson")
                kinds = np.stack([now.mean - now.tie / 2, 1 - now.mean - now.tie / 2, now.tie], axis=1)
                table[upper[0], upper[1], :3] += rng.multinomial(drawn, kinds)
                found = fit(Counts.of_cells(table), prior=WEAK_PRIOR, start=found)
                curve[step] += np.mean((found.theta[upper[0]] > found.theta[upper[1]]) != truth) / runs
    print(f"{models} models with strengths N(0, 0.6^2), mean of {runs} boards, refitted every {batch} votes")
    for goal in (0.05, 0.04, 0.03, 0.025):
        reached = {rule: np.flatnonzero(curve <= goal) for rule, curve in shares.items()}
        if all(len(steps) for steps in reached.values()):
            ours, theirs = ((int(reached[rule][0]) + 1) * batch for rule in ("matchmaking", "uniform"))
            print(f"  {100 * goal:g} % of pairs wrong: {ours:,} votes, uniform {theirs:,}: {theirs / ours:.2f} times")


def coverage(runs: int = 1000) -> None:
    """Print coverage of single intervals, clustered and plain, and of all differences together."""
    strengths = np.linspace(0.8, -0.8, 6)
    settings: list[tuple[str, np.ndarray, float, Ties]] = [
        ("100 voters of 20 votes", np.full(100, 20), 0.5, "davidson"),
        ("100 voters of 20 votes", np.full(100, 20), 0.5, "half"),
        ("30 voters of 40 votes", np.full(30, 40), 0.5, "davidson"),
        ("500 voters of 4 votes", np.full(500, 4), 0.5, "davidson"),
        ("300 voters, very unequal", np.maximum(1, np.random.default_rng(0).lognormal(2.0, 1.0, 300).astype(int)), 0.5,
         "davidson"),
        ("100 voters of one taste", np.full(100, 20), 0.0, "davidson"),
    ]  # fmt: skip
    for name, voters, taste, ties in settings:
        many = simulated(strengths, np.full(150_000, 8), np.random.default_rng(10**6), taste=taste)
        truth = fit(Counts.of_cells(cells(many)), ties=ties).theta
        hits, plain, together = [], [], []
        for run in range(runs):
            votes = simulated(strengths, voters, np.random.default_rng(run), taste=taste)
            found = fit(Counts.of_cells(cells(votes)), ties=ties)
            columns = (votes.model_a, votes.model_b, votes.outcome, votes.voter, len(votes.voters))
            covariance = sandwich(found.bread(), voter_scores(found, *columns), len(voters))[:6, :6]
            effective, error = effective_voters(voters), np.abs(found.theta - truth)
            hits.append(error <= student(0.95, effective) * np.sqrt(np.diag(covariance)))
            plain.append(error <= 1.96 * np.sqrt(np.diag(found.bread())[:6]))
            critical = sup_t(covariance, effective, 0.95, np.random.default_rng(run), pairs=True)
            gaps = (found.theta[:, None] - found.theta) - (truth[:, None] - truth)
            together.append(np.all(np.abs(gaps) <= critical * contrasts(covariance) + 1e-12))
        print(
            f"{name}, taste {taste:g}, ties {ties}: clustered {100 * np.mean(hits):.1f} %, votes taken for independent "
            f"{100 * np.mean(plain):.1f} %, all differences together {100 * np.mean(together):.1f} %"
        )


def peeking(votes: int = 10_000, paths: int = 4000) -> None:
    """Print how often a fair pair is ever called unequal within so many votes."""
    rng = np.random.default_rng(0)
    n = np.arange(1, votes + 1)
    ours, naive = 0, 0
    for _ in range(paths // 100):
        wins = np.cumsum(rng.random((100, votes)) < 0.5, axis=1)
        ours += int((log_evidence(wins, n - wins) >= np.log(20)).any(1).sum())
        z = np.abs(wins - n / 2) / (np.sqrt(n) / 2)
        naive += int((z[:, 9:] >= 1.96).any(1).sum())
    print(
        f"{paths} fair pairs, looked at after each of {votes:,} votes, alpha 5 %: this test {100 * ours / paths:.1f} %,"
    )
    print(f"  z test from the tenth vote on {100 * naive / paths:.1f} %")


TASKS: dict[str, Callable[[], None]] = {"speed": speed, "resolve": resolve, "coverage": coverage, "peeking": peeking}

"""One table of ratings: of all votes, or of one category."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from apps.arena.ratings.anytime import Verdict, first_votes, log_evidence
from apps.arena.ratings.comparability import bounded, groups
from apps.arena.ratings.davidson import Ties
from apps.arena.ratings.fit import ELO_CENTRE, ELO_PER_LOGIT, WEAK_PRIOR, Counts
from apps.arena.ratings.intervals import rank_bounds, student, sup_t
from apps.arena.ratings.robustness import Flip, both_bad_rate, both_bad_rates, voters_to_flip, votes_to_flip
from apps.arena.ratings.solve import Effect, Problem, Settings, Solved, solve
from apps.arena.ratings.table import TIE, A, B, VoteTable
from apps.arena.ratings.tally import cells
from palate.errors import UserError
from palate.statistics import Estimate


@dataclass(frozen=True)
class Row:
    """A model's line, best first. Ratings are Elo points; infinite ends mean that the spread is unknown.

    low, high: interval of this rating alone. low_all, high_all: simultaneous over all models of the table.
    rank_best, rank_worst: simultaneous over all pairs. first: share of resampled boards that it leads; None without.
    resampled_low, resampled_high: the same interval from resampled voters; None without.
    votes, wins, losses, ties: votes of any outcome, and those with one. both_bad: share of votes that found neither good.
    note: what to know before believing the line; "" is nothing.
    """

    model: str
    rating: float
    low: float
    high: float
    low_all: float
    high_all: float
    rank: int
    rank_best: int
    rank_worst: int
    first: float | None
    resampled_low: float | None
    resampled_high: float | None
    votes: int
    wins: int
    losses: int
    ties: int
    both_bad: Estimate
    note: str


@dataclass(frozen=True)
class Heads:
    """Every model against every other, row by column, in the order of `models`.

    wins, ties: votes of the row's model; losses are the transpose of wins. expected: credit that the ratings expect of the
    row's model, ties half. first: voters whose first decided vote on the pair it won; the test counts these. evidence:
    log10 of E. verdict: "ahead" or "behind" at alpha for this pair, read at any time. everywhere: whether the verdict
    holds at alpha for all pairs of the table together (Bonferroni).
    """

    models: tuple[str, ...]
    wins: np.ndarray
    ties: np.ndarray
    expected: np.ndarray
    first: np.ndarray
    evidence: np.ndarray
    verdict: list[list[Verdict]]
    everywhere: np.ndarray


@dataclass(frozen=True)
class Section:
    """One table. `unrated` maps models to why they have no rating; `nu` is Davidson's tie parameter (0: ties half)."""

    name: str
    votes: int
    decided: int
    both_bad: Estimate | None
    voters: int
    effective_voters: float
    rows: list[Row]
    unrated: dict[str, str]
    heads: Heads
    ties: Ties
    nu: float
    effects: list[Effect]
    flips: list[Flip]
    notices: list[str]


def section(name: str, votes: VoteTable, settings: Settings, *, resample: bool = True, flips: bool = True) -> Section:
    """Return the table of these votes, all of which count. flips: also say what would exchange neighbours."""
    rated, unrated = _comparable(votes)
    problem, notices = _pose(rated, settings)
    solved, rows, changed = None, [], []
    order = np.arange(0)
    if rated.models:
        solved, refused = _solve(problem, settings, name, settings.bootstraps if resample else 0)
        notices += refused
        if solved.missing:
            notices.append(f"{solved.missing:,} votes are left out, as a measure of theirs is unknown.")
        if len(problem.crowd) == 1:
            notices.append("All votes are one person's: what others would say is unknown, and so are the intervals.")
        order = np.argsort(-solved.fit.theta, kind="stable")
        rows = _rows(problem, solved, order, settings, name)
        if flips and not solved.effects:
            changed = _flips(problem, solved, order)
    return Section(
        name=name,
        votes=len(votes),
        decided=int(problem.counts.decided.sum()),
        both_bad=both_bad_rate(votes, settings.level),
        voters=int(np.count_nonzero(np.bincount(votes.voter, minlength=1))),
        effective_voters=solved.effective if solved else 0.0,
        rows=rows,
        unrated=unrated,
        heads=_heads(problem, solved, order, settings.alpha),
        ties=problem.ties,
        nu=math.exp(solved.fit.log_nu) if solved else 0.0,
        effects=solved.effects if solved else [],
        flips=changed,
        notices=notices,
    )


def _comparable(votes: VoteTable) -> tuple[VoteTable, dict[str, str]]:
    """Return the votes within the largest group of comparable models, renumbered, and why the others are not rated."""
    decided = Counts.of_cells(cells(votes)).decided
    linked = decided + decided.T
    label = groups(linked)
    weight = np.bincount(label, linked.sum(1), minlength=1)
    keep = (label == np.argmax(weight)) & (weight.max() > 0)
    unrated = {
        model: "not compared with the models above" if linked[i].any() else "no vote that found an output good"
        for i, model in enumerate(votes.models)
        if not keep[i]
    }
    if keep.all():
        return votes, unrated
    kept = votes.take(keep[votes.model_a] & keep[votes.model_b])
    place = (np.cumsum(keep) - 1).astype(votes.model_a.dtype)
    models = tuple(model for model, stays in zip(votes.models, keep, strict=True) if stays)
    return replace(kept, models=models, model_a=place[kept.model_a], model_b=place[kept.model_b]), unrated


def _pose(votes: VoteTable, settings: Settings) -> tuple[Problem, list[str]]:
    """Return what is to be solved: ties count half where there are none to estimate from, and a weak prior bounds what
    wins alone leave infinite."""
    counts, notices = Counts.of_cells(cells(votes)), []
    ties = settings.ties if 0 < counts.ties.sum() < counts.decided.sum() else "half"
    prior = 0.0
    if votes.models and not bounded(counts.credit, counts.decided, counts.ties, "davidson"):
        prior = WEAK_PRIOR
        notices.append(
            "Some models won, lost or tied every vote against the rest, which no finite rating explains. These ratings lean "
            f"on a weak prior: {WEAK_PRIOR:g} votes won and lost by each model against an imagined average one."
        )
    return Problem(votes, counts, ties, prior), notices


def _solve(problem: Problem, settings: Settings, name: str, resamples: int) -> tuple[Solved, list[str]]:
    """Return the ratings, plain with a notice where control has too little to go by."""
    if settings.control:
        try:
            if problem.prior:
                raise UserError("There are too few votes for it.")
            return solve(problem, settings, name, resamples), []
        except UserError as error:
            return solve(problem, replace(settings, control=()), name, resamples), [
                f"Nothing is held equal here. {error}"
            ]
    return solve(problem, settings, name, resamples), []


def _rows(problem: Problem, solved: Solved, order: np.ndarray, settings: Settings, name: str) -> list[Row]:
    votes, m = problem.votes, len(problem.votes.models)
    theta, covariance, draws = solved.fit.theta, solved.covariance, solved.draws
    rng = settings.rng(name, "simultaneous")
    critical = [sup_t(covariance, solved.effective, settings.level, rng, pairs=pairs) for pairs in (False, True)]
    error = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    alone, together = (
        np.full(m, math.inf) if math.isinf(factor) else factor * error
        for factor in (student(settings.level, solved.effective), critical[0])
    )
    best, worst = rank_bounds(theta, covariance, critical[1])
    tails = (0.5 - settings.level / 2, 0.5 + settings.level / 2)
    ends = None if draws is None else ELO_CENTRE + ELO_PER_LOGIT * np.quantile(draws, tails, axis=0)
    leads = None if draws is None else np.bincount(np.argmax(draws, axis=1), minlength=m) / len(draws)
    shown = cells(votes)
    totals = shown.sum(1) + shown.sum(0)[:, [B, A, TIE, 3]]
    bad = both_bad_rates(votes, settings.level)

    def elo(value: float) -> float:
        return float(ELO_CENTRE + ELO_PER_LOGIT * value)

    return [
        Row(
            model=votes.models[i],
            rating=elo(theta[i]),
            low=elo(theta[i] - alone[i]),
            high=elo(theta[i] + alone[i]),
            low_all=elo(theta[i] - together[i]),
            high_all=elo(theta[i] + together[i]),
            rank=rank,
            rank_best=int(best[i]),
            rank_worst=int(worst[i]),
            first=None if leads is None else float(leads[i]),
            resampled_low=None if ends is None else float(ends[0, i]),
            resampled_high=None if ends is None else float(ends[1, i]),
            votes=int(totals[i].sum()),
            wins=int(totals[i, A]),
            losses=int(totals[i, B]),
            ties=int(totals[i, TIE]),
            both_bad=bad[i],
            note=_note(int(totals[i, A]), int(totals[i, B])),
        )
        for rank, i in enumerate(order, start=1)
    ]


def _note(wins: int, losses: int) -> str:
    if wins and losses:
        return ""
    return "not beaten yet" if wins else "no win yet"


def _flips(problem: Problem, solved: Solved, order: np.ndarray) -> list[Flip]:
    models = [problem.votes.models[i] for i in order]
    added = votes_to_flip(problem.counts, solved.fit, problem.prior)
    gone = voters_to_flip(solved.fit.theta, solved.bread, solved.scores)
    return [Flip(*line) for line in zip(models[:-1], models[1:], added, gone, strict=True)]


def _heads(problem: Problem, solved: Solved | None, order: np.ndarray, alpha: float) -> Heads:
    votes, m, here = problem.votes, len(order), np.ix_(order, order)
    shown = cells(votes)
    first = first_votes(votes)[here]
    evidence = log_evidence(first, first.T) / math.log(10)
    sure = evidence >= -math.log10(alpha)
    verdicts: list[list[Verdict]] = [
        [("ahead" if first[i, j] > first[j, i] else "behind") if sure[i, j] else "open" for j in range(m)]
        for i in range(m)
    ]
    return Heads(
        models=tuple(votes.models[i] for i in order),
        wins=(shown[..., A] + shown[..., B].T)[here],
        ties=(shown[..., TIE] + shown[..., TIE].T)[here],
        expected=solved.fit.moments().mean[here] if solved else np.zeros((0, 0)),
        first=first,
        evidence=evidence,
        verdict=verdicts,
        everywhere=evidence >= math.log10(max(m * (m - 1) / 2, 1) / alpha),
    )

"""From scores to a table: accuracy under a rule, what is gained over the baselines, calibration, the human ceiling.

Prompts are divided into two halves by their hash. Whatever is fitted (temperature, ties, PickScore's threshold) is
fitted on the other half's cases, or on validation cases where they are given, so that every case is judged by what was
learnt from other prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from palate.errors import UserError, unknown
from palate.randomness import uniform
from palate.statistics import Estimate
from rewards.benchmark.bootstrap import Bootstrap
from rewards.benchmark.cases import Judgement
from rewards.benchmark.rules import RULES, Marks, choose_threshold
from rewards.benchmark.scoring import Scored
from rewards.calibration import Calibration, Reliability, fit, log_loss, reliability


@dataclass(frozen=True)
class Comparisons:
    """N comparisons of two images of a case. Each array has shape (N,) but `votes`, (N, 3), and a gap a scorer."""

    label: np.ndarray
    """1: the first image is the better one, -1: the second, 0: a tie."""
    votes: np.ndarray
    """Votes for the first, ties, and votes for the second."""
    case: np.ndarray
    prompt: np.ndarray
    """Number of the prompt, equal where prompts are."""
    fold: np.ndarray
    """0 or 1, by the prompt's hash."""
    gaps: Mapping[str, np.ndarray]
    """Scorer -> its score of the first less that of the second."""


@dataclass(frozen=True)
class Row:
    """One scorer in the table."""

    name: str
    accuracy: Estimate
    gain: Estimate | None
    """Accuracy less that of the best baseline on the same comparisons; None for that baseline itself."""
    thresholds: tuple[float, ...]
    """PickScore's rule: the threshold of each half."""
    calibration: Calibration
    """Fitted on all cases, or on the validation cases."""
    reliability: Reliability
    """Of probabilities from other prompts."""
    log_loss: float
    """Nats a vote, of the same probabilities."""
    failed: int
    """Images without a score."""


@dataclass(frozen=True)
class Results:
    """What a benchmark found."""

    rows: list[Row]
    rule: str
    comparisons: int
    cases: int
    prompts: int
    ceiling: Estimate | None
    """One person against the others, under the same rule; None where nobody judged what another did."""
    unscored: list[str]
    """Scorers that could score nothing."""
    left_out: int
    """Comparisons that some scorer could not make, and all therefore do without."""

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        return {
            "rule": self.rule,
            "comparisons": self.comparisons,
            "cases": self.cases,
            "prompts": self.prompts,
            "left_out": self.left_out,
            "unscored": self.unscored,
            "human_ceiling": self.ceiling.as_dict() if self.ceiling else None,
            "scorers": {
                row.name: {
                    "accuracy": row.accuracy.as_dict(),
                    "gain_over_best_baseline": row.gain.as_dict() if row.gain else None,
                    "thresholds": list(row.thresholds),
                    "temperature": row.calibration.temperature if np.isfinite(row.calibration.temperature) else None,
                    "tie": row.calibration.tie,
                    "ece": row.reliability.ece,
                    "log_loss": row.log_loss,
                    "failed_images": row.failed,
                }
                for row in self.rows
            },
        }


def compute(
    scored: Scored,
    rule: str,
    *,
    baselines: Sequence[str],
    validation: Scored | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Results:
    """Return the table of all scorers in `scored`, of which `baselines` are the trivial ones.

    validation: cases on which thresholds and calibrations are chosen instead of the other half's.
    """
    if rule not in RULES:
        raise UserError(unknown("rule", rule, RULES))
    unscored = [name for name, values in scored.values.items() if not any(np.isfinite(v).any() for v in values)]
    names = [name for name in scored.values if name not in unscored]
    found, left_out = compare_all(scored, names)
    if not names or not len(found.label):
        raise UserError(_nothing(scored))
    apart = None if validation is None else compare_all(validation, names)[0]
    if apart is not None and not len(apart.label):
        raise UserError("No comparison of the validation data has scores of all scorers.")
    fitted = {name: _Fitted(found, apart, name, scored.about[name]) for name in names}
    marks = {name: _marks(found, rule, name, fitted[name]) for name in names}
    table = np.stack([marks[name][0].values for name in names], axis=1)
    ranking = marks[names[0]][0].ranking
    bootstrap = Bootstrap([scored.prompts[k] for k in ranking.tolist()], draws=draws, seed=seed)
    drawn = bootstrap.means(table)
    trivial = [k for k, name in enumerate(names) if name in baselines]
    best = max(trivial, key=lambda k: table[:, k].mean(), default=None)
    rows = []
    for k, name in enumerate(names):
        gain = None
        if best is not None and k != best:
            gain = bootstrap.difference(table[:, k] - table[:, best], drawn[:, k] - drawn[:, best])
        rows.append(
            Row(
                name=name,
                accuracy=bootstrap.share(table[:, k], drawn[:, k]),
                gain=gain,
                thresholds=marks[name][1],
                calibration=fitted[name].final,
                reliability=reliability(fitted[name].probabilities, found.votes),
                log_loss=log_loss(fitted[name].probabilities, found.votes),
                failed=len(scored.failures.get(name, [])),
            )
        )
    return Results(
        rows=sorted(rows, key=lambda row: (row.name in baselines, -row.accuracy.value)),
        rule=rule,
        comparisons=len(found.label),
        cases=len(np.unique(found.case)),
        prompts=len(np.unique(found.prompt)),
        ceiling=ceiling(scored, rule, draws=draws, seed=seed),
        unscored=unscored,
        left_out=left_out,
    )


def compare_all(scored: Scored, names: Sequence[str]) -> tuple[Comparisons, int]:
    """Return every comparison of two images of a case that all `names` scored, and how many they did not."""
    places: dict[str, int] = {}
    label, votes, case, prompt, fold = [], [], [], [], []
    gaps: dict[str, list[float]] = {name: [] for name in names}
    left_out = 0
    for k, judgement in enumerate(scored.judgements):
        number = places.setdefault(scored.prompts[k], len(places))
        half = int(uniform(0, scored.prompts[k], 0, "benchmark half") < 0.5)
        for i, j in combinations(range(len(judgement.values)), 2):
            differences = [scored.values[name][k][i] - scored.values[name][k][j] for name in names]
            if not np.isfinite(differences).all():
                left_out += 1
                continue
            for name, difference in zip(names, differences, strict=True):
                gaps[name].append(float(difference))
            label.append(int(np.sign(judgement.values[i] - judgement.values[j])))
            votes.append(judgement.votes(i, j))
            case.append(k)
            prompt.append(number)
            fold.append(half)
    return (
        Comparisons(
            label=np.array(label, dtype=np.int8),
            votes=np.array(votes, dtype=float).reshape(-1, 3),
            case=np.array(case, dtype=np.int64),
            prompt=np.array(prompt, dtype=np.int64),
            fold=np.array(fold, dtype=np.int64),
            gaps={name: np.array(values) for name, values in gaps.items()},
        ),
        left_out,
    )


def ceiling(scored: Scored, rule: str, *, draws: int = 2000, seed: int = 0) -> Estimate | None:
    """Return the mark of one person against the others of the same case: the label is made without that person.

    Rankings: each annotator against the mean of the others. Pairs of votes: each vote against the majority of the rest.
    None where nobody judged what another did too.
    """
    label, lead, place = [], [], []
    weight: list[tuple[int, int]] = []
    for k, judgement in enumerate(scored.judgements):
        for own, others, n in _leave_one_out(judgement):
            for i, j in combinations(range(len(judgement.values)), 2):
                label.append(np.sign(others[i] - others[j]))
                lead.append(np.sign(own[i] - own[j]))
                place.append(len(weight))
            weight.append((k, n))
    if not label:
        return None
    marks = RULES[rule].mark(np.array(label), np.array(lead), np.array(place))
    if not len(marks.values):
        return None
    case, times = (np.array(column)[marks.ranking] for column in zip(*weight, strict=True))
    values, case = np.repeat(marks.values, times), np.repeat(case, times)
    bootstrap = Bootstrap([scored.prompts[k] for k in case.tolist()], draws=draws, seed=seed)
    return bootstrap.share(values, bootstrap.means(values[:, None])[:, 0])


def _leave_one_out(judgement: Judgement) -> list[tuple[Sequence[float], Sequence[float], int]]:
    """Return (one's values, the others' values, how many such people there are)."""
    if judgement.tally is not None:
        first, ties, second = judgement.tally
        kinds = [
            ((1.0, 0.0), (first - 1, second), first),
            ((0.5, 0.5), (first, second), ties),
            ((0.0, 1.0), (first, second - 1), second),
        ]
        return [(own, rest, int(n)) for own, rest, n in kinds if n >= 1 and first + ties + second >= 2]
    people = judgement.annotators
    if len(people) < 2:
        return []
    total = np.sum(people, axis=0)
    return [(own, (total - np.array(own)).tolist(), 1) for own in people]


class _Fitted:
    """A scorer's calibrations: for each half one made on the other half, or for both the one of validation cases."""

    def __init__(self, found: Comparisons, apart: Comparisons | None, name: str, about: Mapping[str, str]) -> None:
        made = partial(fit, unit=about["unit"], weights=about["weights"])
        learn = found if apart is None else apart
        self.final = made(learn.gaps[name], learn.votes, prompts=len(np.unique(learn.prompt)))
        self.halves = [self.final, self.final]
        self.lessons = [(learn.label, learn.gaps[name])] * 2
        """For each half the labels and gaps that it is marked by."""
        if apart is None:
            for fold in (0, 1):
                other = found.fold != fold
                self.lessons[fold] = found.label[other], found.gaps[name][other]
                if found.votes[other][:, [0, 2]].sum() > 0:
                    self.halves[fold] = made(found.gaps[name][other], found.votes[other])
        each = np.stack([half.probabilities(found.gaps[name]) for half in self.halves])
        self.probabilities = each[found.fold, np.arange(len(found.fold))]

    def lead(self, gaps: np.ndarray, fold: int) -> np.ndarray:
        """Return p1 - p0 of Bradley and Terry, without ties: logits as they are, other units by temperature."""
        return np.tanh(gaps / (2 * (1.0 if self.final.unit == "logit" else self.halves[fold].temperature)))


def _marks(found: Comparisons, rule: str, name: str, fitted: _Fitted) -> tuple[Marks, tuple[float, ...]]:
    """Return the marks, and the thresholds of both halves where the rule has one."""
    lead = found.gaps[name].copy()
    if rule != "threshold":
        return RULES[rule].mark(found.label, lead, found.case), ()
    chosen = []
    for fold, (label, gaps) in enumerate(fitted.lessons):
        mine = found.fold == fold
        lead[mine] = fitted.lead(found.gaps[name][mine], fold)
        chosen.append(choose_threshold(label, fitted.lead(gaps, fold)) if len(label) else 0.0)
    return RULES[rule].mark(found.label, lead, found.case, np.array(chosen)[found.fold]), tuple(chosen)


def _nothing(scored: Scored) -> str:
    reasons = [f"{name or 'reading'}: {rows[0]['reason']}" for name, rows in scored.failures.items()]
    return f"No comparison has a score. {'; '.join(reasons[:3])}"

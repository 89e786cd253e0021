"""A benchmark's results as a table to print and as a report page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palate.report import Card, Chart, Line, Report, Step, Table
from rewards.benchmark.results import Results
from rewards.benchmark.rules import RULES
from rewards.benchmark.scoring import Scored

_DIAGONAL = ((0.5, 0.5), (1.0, 1.0))


def lines(results: Results) -> list[str]:
    """Return the table as lines of text."""
    width = max(len("one person against the others"), *(len(row.name) for row in results.rows))
    head = (
        f"{'scorer':<{width}}  {'accuracy':<26}  {'over the best baseline':<26}  {'ECE':>6}  {'nats/vote':>9}  failed"
    )
    found = [head]
    for row in results.rows:
        gain = _points(row.gain) if row.gain else "the best baseline"
        chosen = f"  t {' and '.join(f'{t:g}' for t in row.thresholds)}" if row.thresholds else ""
        found.append(
            f"{row.name:<{width}}  {row.accuracy!s:<26}  {gain:<26}  {100 * row.reliability.ece:>4.1f} %  "
            f"{row.log_loss:>9.3f}  {row.failed}{chosen}"
        )
    if results.ceiling:
        found.append(f"{'one person against the others':<{width}}  {results.ceiling}")
    found += [f"{name} could score nothing; it is not in the table." for name in results.unscored]
    found.append(
        f"{results.comparisons:,} comparisons of {results.cases:,} cases, {results.prompts:,} prompts; left out for want of "
        f"a score: {results.left_out:,}. Rule '{results.rule}'."
    )
    return found


def report(results: Results, data: str, scored: Scored, summary: str) -> Report:
    """Return the report page: cards of the scorers, the table, the reliability of each, what failed."""
    first = results.rows[0]
    notices = [f"{name} could score nothing: {scored.failures[name][0]['reason']}" for name in results.unscored]
    if results.left_out:
        notices.append(
            f"{results.left_out:,} comparisons are left out: an image of theirs has no score of some scorer."
        )
    ceiling = results.ceiling
    return Report(
        title="Scorers against people",
        lede=f"{first.name} agrees with {first.accuracy} of what people said of {data}.",
        cards=[Card(row.name, row.accuracy, note=_failed(row.failed)) for row in results.rows if row.gain][:6]
        + ([Card("One person against the others", ceiling)] if ceiling else []),
        notices=notices,
        tables=[
            Table(
                "Accuracy",
                (
                    "scorer",
                    "accuracy",
                    "over the best baseline",
                    "thresholds",
                    "ECE, %",
                    "nats a vote",
                    "failed images",
                ),
                [
                    (
                        row.name,
                        row.accuracy,
                        row.gain,
                        ", ".join(f"{t:g}" for t in row.thresholds) or None,
                        100 * row.reliability.ece,
                        row.log_loss,
                        row.failed,
                    )
                    for row in results.rows
                ],
                note=f"{RULES[results.rule].words} 95 % intervals by resampling prompts; gains are differences of shares "
                "on the same comparisons. ECE and log-likelihood are of probabilities fitted on other prompts.",
            )
        ],
        charts=[
            Chart(
                f"Reliability of {row.name}",
                [
                    Line("as predicted", _DIAGONAL),
                    Line("observed", list(zip(row.reliability.predicted, row.reliability.observed, strict=True))),
                ],
                x_label="predicted chance of the preferred image",
                y_label="share won",
                smooth=1,
                note=f"ECE {100 * row.reliability.ece:.1f} %; temperature {row.calibration.temperature:.3g} "
                f"{row.calibration.unit}.",
            )
            for row in results.rows
            if row.name in scored.about and row.gain
        ][:6],
        steps=[Step("Train a scorer on these votes", "palate train rewards --config rewards/pickscore --help")],
        provenance={"data": summary, **{name: _made(about) for name, about in scored.about.items()}},
    )


def _points(gain: Any) -> str:
    return f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] points"


def _failed(count: int) -> str:
    return f"{count:,} images failed" if count else ""


def _made(about: Mapping[str, str]) -> str:
    return f"{about['unit']}, weights {about['weights'][:12]}, {about['dtype']}; {about['preprocess'][:200]}"

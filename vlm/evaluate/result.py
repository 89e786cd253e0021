"""What a benchmark says of a set of answers: figures with intervals, what was wrong where, a table, JSON and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from palate.report import Card, Report, Step, Table
from palate.statistics import Estimate, mean_interval
from vlm.evaluate.words import length

SHOWN = 30  # wrong answers on the page


@dataclass(frozen=True)
class Question:
    """One question about one image. `image` is the name of a file in the benchmark's folder of images."""

    id: str
    image: str
    text: str


@dataclass(frozen=True)
class Figure:
    """A number of a benchmark: its name, its interval, what it says in a few words, and the part it belongs to."""

    name: str
    estimate: Estimate
    meaning: str
    part: str = ""


@dataclass(frozen=True)
class Finding:
    """An answer and what is wrong with it: hallucinated words, or what the right answer is."""

    question: Question
    answer: str
    wrong: Sequence[str]


@dataclass(frozen=True)
class Result:
    """A benchmark's figures on a set of answers.

    headline: names of the figures that say it in short; the others stand in the table.
    counts: whole numbers behind the figures.
    notes: by which rule, and what to know before comparing with published numbers.
    left_out: questions without a usable answer, when only a part was scored.
    """

    benchmark: str
    figures: Sequence[Figure]
    headline: Sequence[str]
    counts: Mapping[str, int]
    findings: Sequence[Finding]
    notes: Sequence[str] = ()
    left_out: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Estimate:
        """Return a figure by its name, or by "part/name"."""
        for figure in self.figures:
            if name in (figure.name, f"{figure.part}/{figure.name}"):
                return figure.estimate
        raise KeyError(name)

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON, with every wrong answer."""
        return {
            "benchmark": self.benchmark,
            "figures": {
                f"{f.part}/{f.name}".lstrip("/"): {**f.estimate.as_dict(), "meaning": f.meaning} for f in self.figures
            },
            "counts": dict(self.counts),
            "left_out": self.left_out,
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
            "wrong": [
                {"id": f.question.id, "image": f.question.image, "answer": f.answer, "wrong": list(f.wrong)}
                for f in self.findings
            ],
        }

    def metrics(self) -> dict[str, float]:
        """Return the values by name for a training journal: {"pope/accuracy": 0.85, ...}."""
        return {f"{self.benchmark}/{f.part}/{f.name}".replace("//", "/"): f.estimate.value for f in self.figures}

    def __str__(self) -> str:
        """Return a table for the terminal, a figure to a line."""
        labels = [f"{figure.part}: {figure.name}" if figure.part else figure.name for figure in self.figures]
        width = max(map(len, labels))
        shown = [f"{label:<{width}}  {f.estimate}" for label, f in zip(labels, self.figures, strict=True)]
        numbers = ", ".join(f"{value} {name}" for name, value in self.counts.items())
        without = f"; {self.left_out} questions left out" if self.left_out else ""
        return "\n".join([f"{self.benchmark}: {numbers}{without}", *shown])


class Benchmark(Protocol):
    """Questions, and how answers to them are scored."""

    @property
    def name(self) -> str: ...

    @property
    def questions(self) -> Sequence[Question]: ...

    @property
    def max_new_tokens(self) -> int:
        """How long an answer may be, unless the caller says otherwise."""
        ...

    def score(self, answers: Mapping[str, str]) -> Result:
        """Return the figures of the answers, question id -> answer. Questions without one are counted in `left_out`."""
        ...


def length_figure(answers: Sequence[str], clusters: Sequence[str], part: str = "") -> Figure:
    """Return the mean length of N answers in words; shorter answers alone lower most hallucination figures."""
    estimate = mean_interval([length(answer) for answer in answers], clusters=clusters)
    return Figure("length", estimate, "words per answer", part)


def result_report(result: Result, *, steps: Sequence[Step] = ()) -> Report:
    """Return the page: headline figures, the whole table, what was wrong, and how it was measured."""
    first = result.headline[0]
    notices = [f"{result.left_out} questions have no answer and are left out."] if result.left_out else []
    rows = [(f.part, f.name, f.estimate, f.estimate.n, f.meaning) for f in result.figures]
    parts = any(figure.part for figure in result.figures)
    wrong = [(f.question.image, f.question.text, f.answer, "; ".join(f.wrong)) for f in spread(result.findings, SHOWN)]
    tables = [
        Table(
            "Figures",
            ("part", "figure", "value", "of", "what it is")[0 if parts else 1 :],
            [row[0 if parts else 1 :] for row in rows],
            note="95 % intervals, clustered by image: questions about one image are not independent.",
        )
    ]
    if wrong:
        note = f"{len(wrong)} of {len(result.findings)}, spread over all; every one is in the JSON file."
        tables.append(Table("Wrong answers", ("image", "question", "answer", "wrong"), wrong, note=note))
    return Report(
        title=result.benchmark,
        lede=f"{first}: {result[first]}. " + " ".join(result.notes[:1]),
        cards=[_card(result, name) for name in result.headline],
        notices=[*notices, *result.notes[1:]],
        tables=tables,
        steps=steps,
        provenance={**result.provenance, **result.counts},
    )


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` items, taken evenly over all."""
    return [items[k * len(items) // count] for k in range(count)] if len(items) > count else list(items)


def write_result(path: Path, result: Result) -> Path:
    """Write the numbers, and every wrong answer, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result.as_dict(), indent=1), encoding="utf-8")
    part.replace(path)
    return path


def _card(result: Result, name: str) -> Card:
    figure = next(f for f in result.figures if name in (f.name, f"{f.part}/{f.name}"))
    chance = 0.5 if figure.name in ("accuracy", "yes-ratio") else 0.0
    return Card(name, figure.estimate, note=figure.meaning, reference=chance, of="images")

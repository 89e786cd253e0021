"""AMBER (Wang et al., 2023, arXiv 2311.07397): descriptions, and yes-or-no questions, on 1004 annotated images.

The rules are those of AMBER's script (inference.py of github.com/junyangwang0410/AMBER), apart from two tools that it
calls: nouns come from `vlm.evaluate.words` instead of nltk's tagger and lemmatiser, and similarity of words from vectors
that the user gives instead of spaCy's. docs/vlm-evaluation.md says what that changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from palate.errors import UserError, unknown
from palate.statistics import ratio, share
from vlm.evaluate.result import Figure, Finding, Question, Result, length_figure
from vlm.evaluate.rows import Unread, read_rows
from vlm.evaluate.words import singular, words
from vlm.evaluate.yes_no import Judged, yes_no_figures

Task = Literal["all", "generative", "discriminative", "existence", "attribute", "relation"]
TASKS: tuple[Task, ...] = get_args(Task)
Similar = Callable[[str, str], bool]

_FILES: dict[str, tuple[str, ...]] = {
    "generative": ("query_generative.json",),
    "existence": ("query_discriminative-existence.json",),
    "attribute": ("query_discriminative-attribute.json",),
    "relation": ("query_discriminative-relation.json",),
}
_FILES["discriminative"] = (*_FILES["existence"], *_FILES["attribute"], *_FILES["relation"])
_FILES["all"] = (*_FILES["generative"], *_FILES["discriminative"])
_PARTS = {  # the type of an annotation -> the parts that its question counts in
    "discriminative-hallucination": ("existence",),
    "discriminative-attribute-state": ("attribute", "attribute, state"),
    "discriminative-attribute-number": ("attribute", "attribute, number"),
    "discriminative-attribute-action": ("attribute", "attribute, action"),
    "discriminative-relation": ("relation",),
    "relation": ("relation",),
}


@dataclass(frozen=True)
class Annotation:
    """What is true of one question. `truth` is "yes" or "no", or the objects there; `hallu` what is easily imagined."""

    kind: str
    truth: str | tuple[str, ...]
    hallu: tuple[str, ...] = ()


@dataclass(frozen=True)
class Description:
    """A description judged: N counted nouns, those of them that are hallucinated, and what of truth and hallu is named."""

    nouns: int
    hallucinated: Sequence[str]
    covered: Sequence[bool]
    imagined: Sequence[bool]


@dataclass(frozen=True)
class Amber:
    """Questions of AMBER with their annotations and word lists.

    similar: whether two different words mean the same; None: no two do.
    first_word: read an answer by its first word, in any case, instead of asking for exactly "Yes" or "No".
    """

    questions: Sequence[Question]
    annotations: Mapping[str, Annotation]
    relation: Mapping[str, Sequence[str]]
    safe_words: frozenset[str]
    similar: Similar | None = None
    first_word: bool = False
    name: str = "amber"
    max_new_tokens: int = 512

    def score(self, answers: Mapping[str, str]) -> Result:
        """Return CHAIR, Cover, Hal, Cog and length of descriptions, and the figures of each kind of yes-or-no question."""
        asked = [q for q in self.questions if q.id in answers]
        described = [q for q in asked if self.annotations[q.id].kind == "generative"]
        decided = [q for q in asked if self.annotations[q.id].kind != "generative"]
        figures, findings, headline, notes = [], [], [], []
        counts: dict[str, int] = {}
        if described:
            judged = [self.describe(answers[q.id], self.annotations[q.id]) for q in described]
            figures += _description_figures(judged, [q.image for q in described])
            figures.append(
                length_figure([answers[q.id] for q in described], [q.image for q in described], "descriptions")
            )
            headline += ["CHAIR", "Cover", "Hal"]
            counts |= {"descriptions": len(described), "nouns": sum(j.nouns for j in judged)}
            findings += [
                Finding(q, answers[q.id], j.hallucinated)
                for q, j in zip(described, judged, strict=True)
                if j.hallucinated
            ]
            if self.similar is None:
                notes.append(
                    "No word vectors were given: only listed words count as the same (see docs/vlm-evaluation.md)."
                )
        if decided:
            verdicts = [Judged(self._truth(q), self.read_answer(answers[q.id]), q.image) for q in decided]
            figures += self._decision_figures(decided, verdicts)
            figures.append(length_figure([answers[q.id] for q in decided], [q.image for q in decided], "questions"))
            headline += ["questions/accuracy", "questions/F1"]
            unread = sum(not v.said for v in verdicts)
            counts |= {"yes-or-no answers": len(decided), "of them neither": unread}
            findings += [
                Finding(q, answers[q.id], [f"read as {v.said or 'neither'}, is {v.truth}"])
                for q, v in zip(decided, verdicts, strict=True)
                if v.said != v.truth
            ]
            rule = "their first word" if self.first_word else "AMBER's rule, exactly 'Yes' or 'No'"
            notes.append(f"Yes-or-no answers are read by {rule}; 'no' is the positive class.")
            if unread:
                notes.append(f"{unread} of {len(decided)} yes-or-no answers say neither and count as wrong.")
        left_out = len(self.questions) - len(asked)
        return Result(self.name, figures, headline, counts, findings, notes, left_out)

    def read_answer(self, text: str) -> str:
        """Return "yes", "no", or "" for an answer that is neither."""
        if not self.first_word:
            return {"Yes": "yes", "No": "no"}.get(text, "")
        first = next((word.text.lower() for word in words(text)), "")
        return first if first in ("yes", "no") else ""

    def describe(self, text: str, annotation: Annotation) -> Description:
        """Return the judgement of one description.

        Of the nouns that AMBER lists anywhere, one is hallucinated unless it is a safe word, or is (or is listed for, or
        is similar to) an object that is there. As in AMBER's script, a noun covers the first object that it stands for.
        """
        found = [noun for word in words(text) if (noun := singular(word.text)) in self.listed]
        safe, imagined = self._expand(annotation.truth), self._expand(annotation.hallu)
        covered, dreamt, wrong = set(), set(), []
        for noun in found:
            if noun in self.safe_words:
                continue
            if (owner := _first(safe, noun)) is not None:
                covered.add(owner)
                continue
            for same in (None, self.similar):
                if (owner := _first(imagined, noun, same)) is not None:
                    dreamt.add(owner)
            if self.similar and (owner := _first(safe, noun, self.similar)) is not None:
                covered.add(owner)
                continue
            wrong.append(noun)
        return Description(
            nouns=len(found),
            hallucinated=wrong,
            covered=[k in covered for k in range(len(annotation.truth))],
            imagined=[k in dreamt for k in range(len(annotation.hallu))],
        )

    @cached_property
    def listed(self) -> frozenset[str]:
        """Every noun that AMBER lists: no other counts."""
        return frozenset(self.relation) | {word for listed in self.relation.values() for word in listed}

    def _expand(self, objects: Sequence[str]) -> list[tuple[str, int]]:
        """Return (word, number of the object that it stands for): first the words listed for objects, then the objects."""
        listed = [(word, k) for k, name in enumerate(objects) for word in self.relation[name]]
        return [*listed, *((name, k) for k, name in enumerate(objects))]

    def _truth(self, question: Question) -> str:
        truth = self.annotations[question.id].truth
        assert isinstance(truth, str)
        return truth

    def _decision_figures(self, asked: Sequence[Question], verdicts: Sequence[Judged]) -> list[Figure]:
        parts: dict[str, list[Judged]] = {"questions": list(verdicts)}
        for question, verdict in zip(asked, verdicts, strict=True):
            for part in _PARTS[self.annotations[question.id].kind]:
                parts.setdefault(part, []).append(verdict)
        return [figure for part, some in parts.items() for figure in yes_no_figures(some, "no", part)]


def _first(listed: Sequence[tuple[str, int]], noun: str, similar: Similar | None = None) -> int | None:
    """Return the object of the first word that is `noun`, or that is similar to it."""
    return next((k for word, k in listed if (similar(noun, word) if similar else noun == word)), None)


def _description_figures(judged: Sequence[Description], images: Sequence[str]) -> list[Figure]:
    part = "descriptions"

    def covered(sides: Sequence[Sequence[bool]]) -> Any:
        return ratio([sum(side) for side in sides], [len(side) for side in sides], clusters=images)

    return [
        Figure(
            "CHAIR",
            ratio([len(j.hallucinated) for j in judged], [j.nouns for j in judged], clusters=images),
            "hallucinated of the nouns that AMBER lists",
            part,
        ),
        Figure("Cover", covered([j.covered for j in judged]), "objects there that are named", part),
        Figure("Hal", share([bool(j.hallucinated) for j in judged], clusters=images), "descriptions with any", part),
        Figure("Cog", covered([j.imagined for j in judged]), "easily imagined objects that are named", part),
    ]


def read_amber(
    folder: str | Path, task: Task = "all", *, similar: Similar | None = None, first_word: bool = False
) -> Amber:
    """Return a task of AMBER from the folder with its annotations.json, relation.json, safe_words.txt and queries.

    The query files lie there or in `query/`; "discriminative" and "all" take those of them that are there.
    """
    root = Path(folder)
    if task not in TASKS:
        raise UserError(unknown("task of AMBER", str(task), TASKS))
    places = [root / sub / name for name in _FILES[task] for sub in ("", "query")]
    files = [path for path in places if path.is_file()]
    for name in ("annotations.json", "relation.json", "safe_words.txt"):
        if not (root / name).is_file():
            raise UserError(f"{root} lacks {name}. Give the folder data/ of github.com/junyangwang0410/AMBER.")
    if not files:
        raise UserError(f"{root} has no questions of the task {task}: {' or '.join(_FILES[task])}.")
    relation = read_rows(root / "relation.json")[0][1]
    if not isinstance(relation, dict) or not all(isinstance(listed, list) for listed in relation.values()):
        raise UserError(f"{root / 'relation.json'} is no object of lists.")
    annotations = {
        str(row["id"]): _annotation(place, row, relation) for place, row in _objects(root / "annotations.json")
    }
    questions = [
        Question(str(row["id"]), str(row.get("image", "")), str(row.get("query", "")))
        for path in files
        for _, row in _objects(path)
    ]
    lacking = [question.id for question in questions if question.id not in annotations]
    if lacking:
        raise UserError(f"{root}: {len(lacking)} questions have no annotation, the first is {lacking[0]}.")
    safe = frozenset((root / "safe_words.txt").read_text(encoding="utf-8").split("\n"))
    return Amber(questions, annotations, relation, safe, similar, first_word)


def _objects(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = read_rows(path)
    for place, row in rows:
        if isinstance(row, Unread) or not isinstance(row, dict) or "id" not in row:
            raise UserError(f"{path}, {place}: expected an object with an id, as AMBER's files have it.")
    return [(f"{path}, {place}", row) for place, row in rows]


def _annotation(place: str, row: Mapping[str, Any], relation: Mapping[str, Any]) -> Annotation:
    kind, truth, hallu = str(row.get("type", "")), row.get("truth"), row.get("hallu", [])
    if kind in _PARTS and truth in ("yes", "no"):
        return Annotation(kind, str(truth))
    if kind == "generative" and isinstance(truth, list) and isinstance(hallu, list):
        strange = [name for name in (*truth, *hallu) if not isinstance(name, str) or name not in relation]
        if not strange:
            return Annotation(kind, tuple(truth), tuple(hallu))
        raise UserError(f"{place}: {strange[0]!r} is not in relation.json.")
    raise UserError(f"{place}: no annotation of AMBER (type {kind!r}, truth {str(truth)[:40]!r}).")

"""CHAIR (Rohrbach et al., 2018, arXiv 1809.02156): which objects of a description are not in the image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palate.errors import UserError
from palate.statistics import ratio, share
from vlm.evaluate.result import Figure, Finding, Question, Result, length_figure
from vlm.evaluate.rows import Unread, read_rows
from vlm.evaluate.vocabulary import Mention, Vocabulary

PROMPT = "Describe this image in detail."


@dataclass(frozen=True)
class Chair:
    """Images to describe, and the objects in each.

    truth: image -> names of the objects in it, of the vocabulary.
    aliases: other names of an image (COCO's image ids) -> its file name.
    """

    truth: Mapping[str, frozenset[str]]
    vocabulary: Vocabulary
    prompt: str = PROMPT
    aliases: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    name: str = "chair"
    max_new_tokens: int = 512

    @property
    def questions(self) -> list[Question]:
        return [Question(image, image, self.prompt) for image in self.truth]

    def mentions(self, text: str) -> list[Mention]:
        """Return the objects that a description names; beside a toilet, a seat is no chair (CHAIR's own rule)."""
        found = self.vocabulary.find(text)
        if not any(mention.name == "toilet" for mention in found):
            return found
        return [m for m in found if text[m.start : m.end].lower() not in ("seat", "seats")]

    def score(self, answers: Mapping[str, str]) -> Result:
        """Return CHAIR_s, CHAIR_i, recall and length of the descriptions, image -> description.

        CHAIR_s is the share of descriptions that name an object which is not there, CHAIR_i the share of such among
        all objects named (an object named twice counts twice), recall the share of the objects there that are named.
        """
        images = [image for image in self.truth if image in answers]
        named = [self.mentions(answers[image]) for image in images]
        wrong = [[m for m in ms if m.name not in self.truth[image]] for ms, image in zip(named, images, strict=True)]
        seen = [{m.name for m in ms} & self.truth[image] for ms, image in zip(named, images, strict=True)]
        figures = [
            Figure("CHAIR_s", share([bool(w) for w in wrong], clusters=images), "descriptions with an absent object"),
            Figure(
                "CHAIR_i",
                ratio([len(w) for w in wrong], [len(ms) for ms in named], clusters=images),
                "absent of all objects named",
            ),
            Figure(
                "recall",
                ratio([len(s) for s in seen], [len(self.truth[image]) for image in images], clusters=images),
                "objects there that are named",
            ),
            length_figure([answers[image] for image in images], images),
        ]
        return Result(
            benchmark=self.name,
            figures=figures,
            headline=("CHAIR_s", "CHAIR_i", "recall"),
            counts={
                "descriptions": len(images),
                "objects named": sum(map(len, named)),
                "of them absent": sum(map(len, wrong)),
                "objects there": sum(len(self.truth[image]) for image in images),
            },
            findings=[
                Finding(
                    Question(image, image, self.prompt),
                    answers[image],
                    [
                        f"{answers[image][m.start : m.end]} ({m.name})"
                        if answers[image][m.start : m.end].lower() != m.name
                        else m.name
                        for m in absent
                    ],
                )
                for image, absent in zip(images, wrong, strict=True)
                if absent
            ],
            notes=self.notes,
            left_out=len(self.truth) - len(images),
        )


def read_chair(paths: Sequence[str | Path], vocabulary: Vocabulary, *, prompt: str = PROMPT) -> Chair:
    """Return the benchmark of the objects that these files say are there, all files together.

    A file is COCO's instances or captions JSON (an object that a reference caption names is there, as in CHAIR), or
    rows {"image": name, "objects": [...]} in JSON or JSONL. Raises UserError for objects outside the vocabulary.
    """
    truth: dict[str, set[str]] = {}
    aliases: dict[str, str] = {}
    kinds = set()
    for path in paths:
        rows = read_rows(path)
        whole = rows[0][1]
        if isinstance(whole, dict) and {"annotations", "images"} <= whole.keys():
            kinds.add(_read_coco(whole, str(path), vocabulary, truth, aliases))
        else:
            kinds.add("objects")
            _read_objects(rows, str(path), vocabulary, truth)
    if not truth:
        raise UserError(f"{', '.join(map(str, paths))}: no image with its objects.")
    notes = ["Objects are found by name, with the synonyms given; see docs/vlm-evaluation.md for the rules."]
    if kinds == {"instances"}:
        notes.append("Only instances were given: CHAIR's script also counts what reference captions name as there.")
    return Chair({k: frozenset(v) for k, v in truth.items()}, vocabulary, prompt, aliases, notes)


def _read_coco(
    data: Mapping[str, Any],
    path: str,
    vocabulary: Vocabulary,
    truth: dict[str, set[str]],
    aliases: dict[str, str],
) -> str:
    """Add COCO's annotations to `truth`, and image ids to `aliases`; return "instances" or "captions"."""
    try:
        names = {image["id"]: str(image["file_name"]) for image in data["images"]}
        for image in names.values():
            truth.setdefault(image, set())
        aliases |= {str(key): name for key, name in names.items()}
        if "categories" not in data:
            for row in data["annotations"]:
                truth[names[row["image_id"]]] |= {mention.name for mention in vocabulary.find(row["caption"])}
            return "captions"
        categories = {c["id"]: vocabulary.name(c["name"]) or c["name"] for c in data["categories"]}
        for row in data["annotations"]:
            truth[names[row["image_id"]]].add(categories[row["category_id"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no COCO file of instances or captions: {type(error).__name__} {error}.") from None
    _check_names(path, set(categories.values()), vocabulary)
    return "instances"


def _read_objects(
    rows: Sequence[tuple[str, Any]], path: str, vocabulary: Vocabulary, truth: dict[str, set[str]]
) -> None:
    for place, row in rows:
        if isinstance(row, Unread):
            raise UserError(f"{path}, {place}: {row.reason}.")
        image, objects = (row.get("image"), row.get("objects")) if isinstance(row, dict) else (None, None)
        if not isinstance(image, str) or not isinstance(objects, list) or not all(isinstance(o, str) for o in objects):
            raise UserError(
                f'{path}, {place}: expected {{"image": name, "objects": [names]}}, or one of COCO\'s files.'
            )
        names = {vocabulary.name(name) or name for name in objects}
        _check_names(f"{path}, {place}", names, vocabulary)
        truth.setdefault(image, set()).update(names)


def _check_names(where: str, names: set[str], vocabulary: Vocabulary) -> None:
    strange = sorted(names - set(vocabulary.names))
    if strange:
        raise UserError(
            f"{where}: objects that the list of synonyms does not know: {', '.join(strange[:5])}. "
            "Add a line for each, or give another list with --synonyms."
        )

"""The toy world as a benchmark: pictures whose contents are known exactly, described or asked about."""

from __future__ import annotations

from palate.errors import UserError, unknown
from palate.randomness import key
from palate.records import Media
from palate.toy.grammar import Split
from palate.toy.scenes import DESCRIBE, THINGS, contents, make_scene, name, question
from palate.toy.world import render
from vlm.evaluate.chair import Chair
from vlm.evaluate.pope import Pope
from vlm.evaluate.result import Question
from vlm.evaluate.vocabulary import Vocabulary

PICTURES = 200
_NOTE = "Pictures of the toy world, whose contents are known exactly."


def toy_chair(split: Split = "held_out", count: int = PICTURES, seed: int = 0) -> Chair:
    """Return descriptions of so many pictures, judged by the things that they show."""
    truth = {_image(split, k, seed): frozenset(map(name, contents(make_scene(split, k, seed)))) for k in range(count)}
    vocabulary = Vocabulary({name(thing): () for thing in THINGS})
    return Chair(truth, vocabulary, DESCRIBE[0], notes=[_NOTE], name="toy chair", max_new_tokens=64)


def toy_pope(split: Split = "held_out", count: int = PICTURES, seed: int = 0) -> Pope:
    """Return two questions about each of so many pictures: about a thing that is there, and one that is not."""
    questions, truth = [], {}
    for k in range(count):
        shown = contents(make_scene(split, k, seed))
        absent = [thing for thing in THINGS if thing not in shown]
        for label, things in (("yes", shown), ("no", absent)):
            thing = things[key(seed, f"{split}/{k}", 0, f"toy pope {label}") % len(things)]
            asked = Question(f"{k}-{label}", _image(split, k, seed), question(thing))
            questions.append(asked)
            truth[asked.id] = label
    return Pope(questions, truth, name="toy pope")


def toy_picture(image: str) -> Media:
    """Return the picture of a name that `toy_chair` and `toy_pope` give."""
    split, number, seed = image.removesuffix(".png").rsplit("-", 2)
    return Media.image(render(make_scene(split, int(number), int(seed))))  # type: ignore[arg-type]


def toy_split(source: str) -> Split:
    """Return the split that "toy:held_out" or "toy:train" names."""
    split = source.removeprefix("toy:")
    if split not in ("held_out", "train"):
        raise UserError(unknown("split of the toy world", split, ("held_out", "train")))
    return split  # type: ignore[return-value]


def _image(split: Split, number: int, seed: int) -> str:
    return f"{split}-{number}-{seed}.png"

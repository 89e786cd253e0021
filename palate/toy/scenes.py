"""What the miniature vision-language model sees and says: pictures of things on a grid, and sentences about them.

A *thing* is a coloured shape, such as a red circle. A picture has 1 to 5 different things, each in a cell of a 4 x 4
grid. Eight of the fifteen things have a partner: they are often seen together, which is what tempts a model to name
one that is not there. Sentences name things in one fixed order, whatever their cells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
from PIL import Image

from palate.randomness import key
from palate.toy.grammar import COLOURS, KINDS, Colour, Kind, Split
from palate.toy.perceive import as_array, perceive
from palate.toy.world import SIZE, Scene, Shape, sample_light

Thing = tuple[Colour, Kind]

GRID = 4  # cells in a row and in a column
CELL = SIZE // GRID  # pixels of a cell's side
THINGS: tuple[Thing, ...] = tuple(product(COLOURS, KINDS))
"""All things, in the order in which sentences name them."""
_COUPLES: tuple[tuple[Thing, Thing], ...] = (
    (("red", "circle"), ("green", "square")),
    (("yellow", "triangle"), ("purple", "circle")),
    (("red", "square"), ("blue", "triangle")),
    (("yellow", "circle"), ("purple", "triangle")),
)
PARTNERS: dict[Thing, Thing] = {one: other for couple in _COUPLES for one, other in (couple, couple[::-1])}
"""Thing -> the thing that it is often seen with."""
TOGETHER = 0.4
"""Probability that a thing with a partner brings it along."""
_WEIGHTS = np.array([2.0 if thing in PARTNERS else 1.0 for thing in THINGS])  # things with a partner are seen more
COUNTS = (0.2, 0.3, 0.25, 0.15, 0.1)
"""Probabilities of 1, 2, ... 5 things."""
DESCRIBE = ("Describe the picture.", "What is in the picture?", "What do you see?")
"""Questions that are answered with a sentence."""


def name(thing: Thing) -> str:
    """The words for a thing: "red circle"."""
    return " ".join(thing)


def question(thing: Thing) -> str:
    """The yes-or-no question about a thing, in POPE's words."""
    return f"Is there a {name(thing)} in the picture?"


def sentence(things: Iterable[Thing]) -> str:
    """The description that names these things, in the fixed order: "A red circle, a red square and a blue circle."""
    wanted = set(things)
    names = [f"a {name(thing)}" for thing in THINGS if thing in wanted]
    if not names:
        return "Nothing."
    said = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{said[0].upper()}{said[1:]}."


def absent_partners(things: Sequence[Thing]) -> tuple[Thing, ...]:
    """The partners of these things that are not among them, in the fixed order."""
    missing = {PARTNERS[thing] for thing in things if thing in PARTNERS} - set(things)
    return tuple(thing for thing in THINGS if thing in missing)


def is_held_out(things: Iterable[Thing]) -> bool:
    """Whether a set of things is kept from training: about a third of all sets of two and more."""
    names = sorted(name(thing) for thing in set(things))
    return len(names) > 1 and hashlib.blake2b("+".join(names).encode(), digest_size=2).digest()[0] < 84


def sample_things(rng: np.random.Generator, split: Split) -> tuple[Thing, ...]:
    """1 to 5 different things of a split, in the fixed order; single things are in both splits."""
    count = 1 + int(rng.choice(len(COUNTS), p=COUNTS))
    while True:
        found: list[Thing] = []
        while len(found) < count:
            thing = THINGS[rng.choice(len(THINGS), p=_WEIGHTS / _WEIGHTS.sum())]
            if thing in found:
                continue
            found.append(thing)
            partner = PARTNERS.get(thing)
            if partner and partner not in found and len(found) < count and rng.random() < TOGETHER:
                found.append(partner)
        if len(found) == 1 or is_held_out(found) == (split == "held_out"):
            return tuple(thing for thing in THINGS if thing in found)


def make_scene(split: Split, index: int, seed: int = 0) -> Scene:
    """Scene number `index` of a split: a function of the three arguments alone."""
    rng = np.random.default_rng(key(seed, split, index, "toy scene"))
    things = sample_things(rng, split)
    shapes = []
    for (colour, kind), cell in zip(things, rng.permutation(GRID * GRID)[: len(things)].tolist(), strict=True):
        size = float(rng.uniform(0.09, 0.115))
        slack = 0.5 / GRID - size  # the shape stays in its cell
        x, y = ((at + 0.5) / GRID + float(rng.uniform(-slack, slack)) for at in (cell % GRID, cell // GRID))
        shapes.append(Shape(kind, colour, x, y, size))
    return Scene(tuple(shapes), *sample_light(rng))


def contents(scene: Scene) -> tuple[Thing, ...]:
    """The things of a scene, in the fixed order."""
    shown = {(shape.colour, shape.kind) for shape in scene.shapes}
    return tuple(thing for thing in THINGS if thing in shown)


def things_in(image: Image.Image | np.ndarray) -> tuple[Thing, ...]:
    """The things in a picture of the grid, in the fixed order, seen by `perceive` cell by cell."""
    rgb = as_array(image)
    seen = set()
    for row, column in product(range(GRID), repeat=2):
        here = np.s_[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        alone = np.full_like(rgb, np.median(rgb))
        alone[here] = rgb[here]
        seen |= {(shape.colour, shape.kind) for shape in perceive(alone)}
    return tuple(thing for thing in THINGS if thing in seen)

"""Scenes of coloured shapes: what they contain, how they are drawn, and which caption is true of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from palate.toy.grammar import Colour, Kind, Place, Relation, Request, parse_prompt, prompts

__all__ = ["SIZE", "Scene", "Shape", "caption", "coverage", "prompts", "render", "render_array", "sample_scene"]

SIZE = 32  # pixels, both sides
RGB: dict[Colour, tuple[float, float, float]] = {
    "red": (0.87, 0.15, 0.15),
    "yellow": (0.95, 0.80, 0.10),
    "green": (0.13, 0.65, 0.27),
    "blue": (0.15, 0.35, 0.90),
    "purple": (0.62, 0.20, 0.75),
}
SMALLEST, LARGEST = 0.09, 0.26  # half-extent of a shape, in image widths
_GAP = 0.04  # least distance between two shapes, in image widths


@dataclass(frozen=True)
class Shape:
    """One shape. `x` (rightwards) and `y` (downwards) are the centre of its bounding box and `size` is half of that
    box's side, all in image widths."""

    kind: Kind
    colour: Colour
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """Shapes on a background; `slope` is how much the background brightens rightwards and downwards."""

    shapes: tuple[Shape, ...]
    background: tuple[float, float, float] = (0.92, 0.92, 0.92)
    slope: tuple[float, float] = (0.0, 0.0)


@cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    return np.broadcast_to(centres[None, :], (SIZE, SIZE)), np.broadcast_to(centres[:, None], (SIZE, SIZE))


def coverage(kind: Kind, x: float, y: float, size: float) -> np.ndarray:
    """(32, 32) share of each pixel that the shape covers, antialiased from its signed distance."""
    across, down = _grid()
    dx, dy = across - x, down - y
    if kind == "circle":
        distance = np.sqrt(dx * dx + dy * dy) - size
    elif kind == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - size
    else:  # apex up, base and height both 2 * size; the sides have slope 2
        distance = np.maximum((2 * np.abs(dx) - dy - size) / np.sqrt(5.0), dy - size)
    return np.clip(0.5 - distance * SIZE, 0.0, 1.0)


def render_array(scene: Scene) -> np.ndarray:
    """(32, 32, 3) float32 in [0, 1]."""
    across, down = _grid()
    light = scene.slope[0] * (across - 0.5) + scene.slope[1] * (down - 0.5)
    image = np.asarray(scene.background, np.float32) + light[..., None]
    for shape in scene.shapes:
        alpha = coverage(shape.kind, shape.x, shape.y, shape.size)[..., None]
        image = image * (1 - alpha) + alpha * np.asarray(RGB[shape.colour], np.float32)
    return np.clip(image, 0.0, 1.0).astype(np.float32)


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB image of 32 x 32 pixels."""
    return Image.fromarray(np.round(render_array(scene) * 255).astype(np.uint8))


def place_of(shape: Shape) -> Place | None:
    """The place whose words are true of a shape's centre; None where no word fits well."""
    dx, dy = shape.x - 0.5, shape.y - 0.5
    if max(abs(dx), abs(dy)) <= 0.1:
        return "centre"
    if abs(dx) >= 0.13 and abs(dy) <= 0.15:
        return "left" if dx < 0 else "right"
    if abs(dy) >= 0.13 and abs(dx) <= 0.15:
        return "top" if dy < 0 else "bottom"
    return None


def relation_of(one: Shape, two: Shape) -> Relation | None:
    """How `one` lies to `two`; None where they are diagonal."""
    dx, dy = two.x - one.x, two.y - one.y
    if abs(dx) >= 0.2 and abs(dy) <= 0.7 * abs(dx):
        return "left of" if dx > 0 else "right of"
    if abs(dy) >= 0.2 and abs(dx) <= 0.7 * abs(dy):
        return "above" if dy > 0 else "below"
    return None


def caption(scene: Scene) -> str:
    """The most telling true caption; of more than two shapes the two largest are named, in the scene's order."""
    largest = sorted(scene.shapes, key=lambda shape: -shape.size)[:2]
    shapes = [shape for shape in scene.shapes if shape in largest][:2]
    objects = tuple((shape.colour, shape.kind) for shape in shapes)
    if len(shapes) == 1:
        return Request(objects, place=place_of(shapes[0])).text()
    if len(shapes) == 2:
        return Request(objects, relation=relation_of(*shapes)).text()
    return Request(()).text()


def _sample_size(rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))


def _allowed(shapes: list[Shape], request: Request) -> bool:
    for shape in shapes:  # a sixth of a shape may be cut off by the border
        if min(shape.x, shape.y, 1 - shape.x, 1 - shape.y) < shape.size * 0.85:
            return False
    if request.place is not None and place_of(shapes[0]) != request.place:
        return False
    if len(shapes) < 2:
        return True
    one, two = shapes
    if max(abs(one.x - two.x), abs(one.y - two.y)) < one.size + two.size + _GAP:
        return False
    return request.relation is None or relation_of(one, two) == request.relation


def sample_scene(rng: np.random.Generator, prompt: str | None = None) -> Scene:
    """A random scene of which `prompt` is true; without one, of a random training prompt.

    Sizes are log-uniform and never named by the prompt; positions vary within what the prompt says.
    """
    if prompt is None:
        choices = prompts("train")
        prompt = choices[rng.integers(len(choices))]
    request = parse_prompt(prompt)
    while True:
        shapes = [
            Shape(kind, colour, float(rng.uniform(0.1, 0.9)), float(rng.uniform(0.1, 0.9)), _sample_size(rng))
            for colour, kind in request.objects
        ]
        if _allowed(shapes, request):
            break
    return Scene(tuple(shapes), *sample_light(rng))


def sample_light(rng: np.random.Generator) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """A random background, nearly grey, and its slope."""
    grey = rng.uniform(0.84, 0.97)
    red, green, blue = np.clip(grey + rng.uniform(-0.02, 0.02, size=3), 0, 1).tolist()
    return (red, green, blue), (float(rng.uniform(-0.06, 0.06)), float(rng.uniform(-0.06, 0.06)))

"""The worse side of a gold battle: an output spoilt so that nobody who looks can prefer it."""

from __future__ import annotations

from random import Random

from PIL import Image

from palate.randomness import key

TILES = 4


def spoil_image(picture: Image.Image, name: str) -> Image.Image:
    """Return the picture cut into 4 x 4 tiles and laid in another order, a function of `name`."""
    edges_x = [round(k * picture.width / TILES) for k in range(TILES + 1)]
    edges_y = [round(k * picture.height / TILES) for k in range(TILES + 1)]
    boxes = [(edges_x[i], edges_y[j], edges_x[i + 1], edges_y[j + 1]) for j in range(TILES) for i in range(TILES)]
    spoilt = Image.new("RGB", picture.size)
    for box, source in zip(boxes, _displaced(boxes, name), strict=True):
        spoilt.paste(picture.crop(source).resize((box[2] - box[0], box[3] - box[1])), box)
    return spoilt


def spoil_text(text: str, name: str) -> str | None:
    """Return the words in another order, a function of `name`; None where there are too few to tell."""
    words = text.split()
    return " ".join(_displaced(words, name)) if len(words) >= 8 and len(set(words)) >= 6 else None


def _displaced(items: list, name: str) -> list:
    """Return a permutation that leaves nothing in its place: one random cycle through all items (Sattolo, 1986)."""
    order, random = list(range(len(items))), Random(key(0, name, 0, "spoil"))
    for k in range(len(order) - 1, 0, -1):
        j = random.randrange(k)
        order[k], order[j] = order[j], order[k]
    return [items[k] for k in order]

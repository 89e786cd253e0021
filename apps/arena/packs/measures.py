"""Measures of an output that style control can hold fixed: how large, bright, colourful, sharp; how long, how listed."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image


def of_image(picture: Image.Image) -> dict[str, float]:
    """Return megapixels, aspect (log of width over height), luminance and saturation (0 to 1), sharpness.

    Sharpness is the standard deviation of the 4-neighbour Laplacian of the luminance.
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    top, bottom = pixels.max(axis=2), pixels.min(axis=2)
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    measured = {
        "megapixels": picture.width * picture.height / 1e6,
        "aspect": float(np.log(picture.width / picture.height)),
        "luminance": float(grey.mean()),
        "saturation": float(((top - bottom) / np.maximum(top, 1e-6)).mean()),
        "sharpness": float(laplacian.std()) if laplacian.size else 0.0,
    }
    return {name: round(value, 6) for name, value in measured.items()}


def of_text(text: str) -> dict[str, float]:
    """Return length (words), lists (items of lists), bold (marked spans) and headings of a Markdown answer."""
    return {
        "length": float(len(text.split())),
        "lists": float(len(re.findall(r"^\s*(?:[-*+]|\d+[.)])\s", text, re.MULTILINE))),
        "bold": float(len(re.findall(r"\*\*\S(?:.*?\S)?\*\*", text))),
        "headings": float(len(re.findall(r"^#{1,6}\s", text, re.MULTILINE))),
    }

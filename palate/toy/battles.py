"""Rendered battles for learning and judging scorers: two scenes for one prompt, some of them not what it asks for."""

from __future__ import annotations

import numpy as np
from PIL import Image

from palate.errors import UserError
from palate.randomness import key
from palate.toy.grammar import Split, prompts, wrong_in_one_word
from palate.toy.world import render, sample_scene


def battles(count: int, seed: int = 0, split: Split = "train") -> list[tuple[str, Image.Image, Image.Image]]:
    """Return (prompt, image a, image b) of `count` battles; prompts repeat once all of the split have had their turn.

    A battle is a function of its number, the seed and the split. Sizes and places vary, so that tastes can differ.
    """
    if count < 1:
        raise UserError(f"Ask for at least 1 battle, not {count}.")
    known = prompts(split)
    found = []
    for number in range(count):
        turn, place = divmod(number, len(known))
        if place == 0:
            order = np.random.default_rng(key(seed, split, turn, "order of prompts")).permutation(len(known))
        prompt = known[order[place]]
        rng = np.random.default_rng(key(seed, split, number, "battle"))
        found.append((prompt, *(_image(prompt, known, rng) for _ in "ab")))
    return found


def _image(prompt: str, known: tuple[str, ...], rng: np.random.Generator) -> Image.Image:
    """Return what the prompt asks for, what it asks for with one word wrong, or anything: a third each."""
    shown = (prompt, wrong_in_one_word(prompt, rng), known[rng.integers(len(known))])[rng.integers(3)]
    return render(sample_scene(rng, shown))

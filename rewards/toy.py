"""The toy world's scorers: its miniature open_clip model, and its hidden taste, which is the ground truth there."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import palate
from palate.errors import UserError
from rewards.pairs import Answer, PairScorer

if TYPE_CHECKING:
    from rewards.open_clip import Convention, Dtype, OpenClipScorer

Part = Literal["total", "semantic", "visual"]


class TasteScorer(PairScorer):
    """One part of the hidden taste (`palate.toy.taste`) as a `Scorer`. It sees pixels and the prompt only."""

    unit = "taste"
    preprocess = "pixels as they are"
    batch_size = 256

    def __init__(self, part: Part) -> None:
        self.name = "toy-taste" if part == "total" else f"toy-{part}"
        self.weights = _code_hash()
        self._part = part

    def answers(self, inputs: list[Any], of: Sequence[int], prompts: Sequence[str]) -> list[Answer]:
        from palate.toy.taste import taste

        found = []
        for index, prompt in zip(of, prompts, strict=True):
            try:
                found.append(Answer(float(getattr(taste(prompt, inputs[index]), self._part))))
            except UserError as error:  # a prompt or a picture from outside the toy world
                found.append(Answer(np.nan, str(error)))
        return found


def load_total() -> TasteScorer:
    """Return the whole hidden taste. It runs on the CPU, one image at a time."""
    return TasteScorer("total")


def load_semantic() -> TasteScorer:
    """Return the semantic part: whether the image shows the objects, colours and places that the prompt asks for."""
    return TasteScorer("semantic")


def load_visual() -> TasteScorer:
    """Return the visual part: size and composition."""
    return TasteScorer("visual")


def load_toy(
    *,
    convention: Convention = "cosine",
    dtype: Dtype | None = None,
    device: str | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> OpenClipScorer:
    """Return the miniature open_clip model that ships with palate, trained on the toy world's captions."""
    from palate.toy.weights import toy_path
    from rewards.open_clip import load

    return load(
        str(toy_path("clip")),
        convention=convention,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        cache=cache,
        name="toy",
    )


def _code_hash() -> str:
    """Return a hash of the code that is the taste: it has no weights, and a change of it changes scores."""
    folder = Path(palate.__file__).parent / "toy"
    total = blake2b(digest_size=16)
    for name in ("world.py", "grammar.py", "perceive.py", "taste.py"):
        total.update((folder / name).read_bytes())
    return total.hexdigest()

"""How often the encoders of a scorer were called, and on how much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rewards.stages import StagedScorer


class Counts:
    """images, texts: how many were encoded; calls: in how many batches."""

    def __init__(self) -> None:
        self.images = self.texts = self.calls = 0


def count(scorer: StagedScorer) -> Counts:
    """Count what a scorer of the CLIP family encodes from now on; its weights stay shared, the count is its own."""
    counts, towers = Counts(), scorer.towers  # type: ignore[attr-defined]

    def images(pixels: Any) -> Any:
        counts.images += len(pixels)
        counts.calls += 1
        return towers.encode_image(pixels)

    def texts(tokens: Any) -> Any:
        counts.texts += len(tokens.ids)
        return towers.encode_text(tokens)

    scorer.towers = scorer.embedder.towers = replace(towers, encode_image=images, encode_text=texts)  # type: ignore[attr-defined]
    return counts

"""One prompt with many images, and every prompt with every image, by name: neither is ever guessed from lengths."""

from __future__ import annotations

from collections.abc import Sequence

from palate.errors import UserError
from rewards.protocol import ImageLike, ScoreBatch, ScoreMatrix, Scorer


def score_images(scorer: Scorer, prompt: str, images: Sequence[ImageLike]) -> ScoreBatch:
    """Return the score of each image for one prompt, under any scorer."""
    if not isinstance(prompt, str):
        raise UserError(
            f"score_images takes one prompt, a text; got {type(prompt).__name__}. See score and score_matrix."
        )
    return scorer.score([prompt] * len(images), images)


def score_matrix(scorer: Scorer, prompts: Sequence[str], images: Sequence[ImageLike]) -> ScoreMatrix:
    """Return the score of every prompt with every image, (P, I), under any scorer."""
    if isinstance(prompts, str):
        raise UserError("score_matrix takes a list of prompts; got one text. score_images takes one.")
    pictures = list(images)
    batch = scorer.score([p for p in prompts for _ in pictures], [i for _ in prompts for i in pictures])
    return ScoreMatrix(batch, (len(prompts), len(pictures)))

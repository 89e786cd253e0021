"""Reward models behind one protocol: prompts and images in, one score per row out.

    from rewards import load_scorer
    scorer = load_scorer("toy")
    scorer.score(prompts, images).values             # (N,) float64, one to one; higher is better
    scorer.score_images(prompt, images).values       # (I,)
    scorer.score_matrix(prompts, images).values      # (P, I)
    scorer.score_tensor(prompts, pixels)             # (B,) of (B, 3, H, W) from 0 to 1, with gradients

`SCORERS` is the table of what is built in; `load_scorer` also takes a folder, a hub name, "module:attribute" or an
object of your own. `score_together` shares decoding, resizing and encoding among scorers. Nothing here imports torch
until a scorer that needs it is loaded.
"""

from typing import TYPE_CHECKING, Any

from rewards.layouts import score_images, score_matrix
from rewards.loading import SCORERS, load_scorer
from rewards.protocol import ImageLike, ScoreBatch, ScoreMatrix, Scorer

if TYPE_CHECKING:
    from rewards.ensemble import Ensemble, Part
    from rewards.stages import score_together

__all__ = [
    "SCORERS",
    "Ensemble",
    "ImageLike",
    "Part",
    "ScoreBatch",
    "ScoreMatrix",
    "Scorer",
    "load_scorer",
    "score_images",
    "score_matrix",
    "score_together",
]
_LATER = {"Ensemble": "rewards.ensemble", "Part": "rewards.ensemble", "score_together": "rewards.stages"}


def __getattr__(name: str) -> Any:
    """Import what costs time when it is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)

"""What a scorer is, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, Union, runtime_checkable

import numpy as np

from palate.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from palate.records import Media

ImageLike: TypeAlias = Union["Image.Image", "Media", bytes, str, Path, np.ndarray, "torch.Tensor", None]
"""An image to score: PIL, a `Media`, encoded bytes, a path, an array (H W C) or a tensor (C H W), either of them uint8,
or float from 0 to 1. None stands for one that is not there (a blacked-out sample), and scores NaN."""


@dataclass(frozen=True)
class ScoreBatch:
    """Scores of N (prompt, image) rows, and what made them.

    A row that could not be scored is NaN, never 0, and `failures` says why. NaN spreads through means and is refused
    by `palate.statistics`, so that it cannot pass for a low score.
    """

    values: np.ndarray
    """(N,) float64; higher is better."""
    scorer: str
    unit: str
    """What the numbers are: "cosine", "logit", "taste", ..."""
    weights: str
    """Hash of the weights and their configuration; equal hashes give equal scores for one preprocessing and dtype."""
    preprocess: str
    """How an image became the model's input, with the version of what did it."""
    dtype: str = "float32"
    """Arithmetic of the model."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Row -> why it has no score."""
    truncated: frozenset[int] = frozenset()
    """Rows whose prompt was longer than the model reads; their scores know only its beginning."""

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or self.values.dtype != np.float64:
            raise TypeError(f"Scores are a float64 array of shape (N,), not {self.values.dtype} {self.values.shape}.")
        if set(np.flatnonzero(~np.isfinite(self.values)).tolist()) != set(self.failures):
            raise ValueError("Exactly the rows without a finite score have a reason in `failures`.")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def ok(self) -> np.ndarray:
        """(N,) bool: the rows that have a score."""
        return np.isfinite(self.values)

    def complete(self) -> ScoreBatch:
        """Return the batch itself if every row has a score; UserError naming the first rows without one otherwise."""
        if self.failures:
            shown = "; ".join(f"row {row}: {reason}" for row, reason in sorted(self.failures.items())[:5])
            more = f"; and {len(self.failures) - 5} more" if len(self.failures) > 5 else ""
            raise UserError(
                f"{self.scorer} could not score {len(self.failures)} of {len(self)} rows ({shown}{more}). "
                "Repair or leave out these rows."
            )
        return self


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores of every prompt with every image. `batch` holds them flat, prompt by prompt: row p * I + i."""

    batch: ScoreBatch
    shape: tuple[int, int]
    """(P, I): how many prompts and images."""

    @property
    def values(self) -> np.ndarray:
        """(P, I) float64; higher is better."""
        return self.batch.values.reshape(self.shape)

    @property
    def failures(self) -> dict[tuple[int, int], str]:
        """(prompt, image) -> why it has no score."""
        return {divmod(row, self.shape[1]): reason for row, reason in self.batch.failures.items()}  # type: ignore[misc]


@runtime_checkable
class Scorer(Protocol):
    """Anything with a name, a unit and `score`; no inheritance needed."""

    name: str
    unit: str

    def score(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> ScoreBatch:
        """Return the score of each row (prompts[i], images[i]), in order. Prompts may be mixed freely.

        UserError if the two differ in length. A row whose image cannot be read is NaN with its reason.
        """
        ...

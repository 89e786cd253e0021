"""Scores that are a formula of the cosine between a prompt's vector and an image's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palate.errors import UserError, unknown
from rewards.protocol import ImageLike, ScoreBatch
from rewards.rows import Rows, gather
from rewards.stages import Scores, StagedScorer, Work, run
from rewards.towers import Embedder, ImageVectors, unit

_ROWS_AT_ONCE = 8192  # row-wise products, never every prompt with every image


@dataclass(frozen=True)
class Formula:
    """cosine -> score. factor None is the model's own exp(logit_scale) and bias; floor cuts negative cosines to 0."""

    unit: str
    factor: float | None = 1.0
    floor: bool = False
    prefix: str = ""
    """What stands before every prompt."""


FORMULAS: dict[str, Formula] = {
    "cosine": Formula("cosine"),
    "logits": Formula("logit", factor=None),
    # Hessel et al. 2021 (2104.08718), section 3: w = 2.5; the prefix is that of their code and experiments.
    "original": Formula("2.5 cosine", factor=2.5, floor=True, prefix="A photo depicts "),
    # torchmetrics' CLIPScore, which floors the mean over a data set where this floors each row.
    "torchmetrics": Formula("100 cosine", factor=100.0, floor=True),
}
"""The conventions in which similarities are reported. Their numbers do not compare, nor do those of two models."""


def find_formula(convention: str) -> Formula:
    """Return the formula of that name; UserError for a name that is not known."""
    if convention not in FORMULAS:
        raise UserError(unknown("convention", str(convention), FORMULAS))
    return FORMULAS[convention]


class ClipScorer(StagedScorer):
    """A formula over a pair of towers, as a `Scorer`.

    name, unit: as in ScoreBatch. weights, preprocess, dtype: what a cache key needs besides the content.
    """

    def __init__(self, embedder: Embedder, name: str, formula: Formula) -> None:
        self.name, self.unit, self.formula = name, formula.unit, formula
        self.embedder, self.towers = embedder, embedder.towers
        self.weights, self.dtype = self.towers.weights, self.towers.dtype
        self.preprocess = self.towers.preprocess.version

    def begin(self, rows: Rows) -> ImageVectors:
        return self.embedder.begin(rows)

    def finish(self, rows: Rows, work: Work) -> ScoreBatch:
        assert isinstance(work, ImageVectors)
        scores = Scores(rows, self.needs_prompt, work.refused)
        ok = np.flatnonzero(scores.ok)
        truncated: frozenset[int] = frozenset()
        if len(ok):
            texts, cut = work.texts(self._worded(rows.prompts))
            cosines = products(texts, work.vectors(), rows.prompt_of[ok], rows.image_of[ok])
            scores.values[ok] = self._scaled(torch.from_numpy(cosines)).numpy()
            truncated = frozenset(ok[cut[rows.prompt_of[ok]]].tolist())
        return scores.batch(
            scorer=self.name,
            unit=self.unit,
            weights=self.weights,
            preprocess=self.preprocess,
            dtype=self.dtype,
            truncated=truncated,
        )

    def score_tensor(self, prompts: Sequence[str], images: Tensor) -> Tensor:
        check_tensor(prompts, images)
        towers = self.towers
        distinct = list(dict.fromkeys(prompts))
        texts, _ = self.embedder.texts(self._worded(distinct))
        which = [distinct.index(prompt) for prompt in prompts]
        pixels = towers.preprocess.of_tensor(images.to(towers.device, torch.float32))
        return self._scaled((unit(towers.encode(pixels)) * texts[which].to(towers.device)).sum(-1))

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return (N, D) float32 unit vectors on the CPU, one per prompt."""
        distinct = list(dict.fromkeys(prompts))
        number = {prompt: index for index, prompt in enumerate(distinct)}
        return self.embedder.texts(self._worded(distinct))[0][[number[prompt] for prompt in prompts]]

    def embed_images(self, images: Sequence[ImageLike]) -> Tensor:
        """Return (N, D) float32 unit vectors on the CPU, one per image; a row of NaN where an image is unreadable."""
        return embed_images(self.embedder, images)

    def _worded(self, prompts: Sequence[str]) -> list[str]:
        return [self.formula.prefix + prompt for prompt in prompts]

    def _scaled(self, cosines: Tensor) -> Tensor:
        formula = self.formula
        if formula.factor is None:
            return self.towers.scale * cosines + self.towers.bias
        return formula.factor * (cosines.clamp(min=0) if formula.floor else cosines)


def embed_images(embedder: Embedder, images: Sequence[ImageLike]) -> Tensor:
    """Return (N, D) float32 unit vectors on the CPU, one per image; a row of NaN where an image is unreadable."""
    rows = gather([""] * len(images), images)
    (work,) = run([embedder.begin(rows)], rows)
    assert isinstance(work, ImageVectors)
    vectors, index = work.vectors(), torch.from_numpy(rows.image_of)
    found = torch.full((len(rows), vectors.shape[1]), torch.nan)
    found[index >= 0] = vectors[index[index >= 0]]
    return found


def products(texts: Tensor, pictures: Tensor, prompt_of: np.ndarray, image_of: np.ndarray) -> np.ndarray:
    """Return (N,) float64 inner products of the vectors that each row names."""
    found = np.empty(len(prompt_of))
    for start in range(0, len(found), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        text, picture = texts[torch.from_numpy(prompt_of[part])], pictures[torch.from_numpy(image_of[part])]
        found[part] = (text.double() * picture.double()).sum(-1).numpy()
    return found


def check_tensor(prompts: Sequence[str], images: Any) -> None:
    """UserError unless images are a float tensor (B, 3, H, W), one for each prompt."""
    if isinstance(prompts, str) or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        raise UserError("score_tensor takes a list of prompts that are not empty, one per image.")
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        given = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f"score_tensor takes a float tensor (B, 3, H, W) from 0 to 1; got {given}.")
    if len(prompts) != len(images):
        raise UserError(f"score_tensor pairs prompts and images; got {len(prompts)} prompts and {len(images)} images.")

"""A weighted sum of scorers, each brought to one scale first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from palate.errors import UserError, unknown
from rewards.layouts import score_images, score_matrix
from rewards.protocol import ImageLike, ScoreBatch, ScoreMatrix, Scorer
from rewards.stages import StagedScorer, score_together

if TYPE_CHECKING:
    from torch import Tensor

_FIELDS = ("scorer", "weight", "mean", "std", "options")


@dataclass(frozen=True)
class Part:
    """weight * (score - mean) / std. With mean 0 and std 1 a score counts as it is, in its own unit."""

    scorer: Scorer
    weight: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not np.isfinite([self.weight, self.mean, self.std]).all() or self.std <= 0:
            raise UserError(
                f"The part {self.scorer.name} has weight {self.weight}, mean {self.mean}, std {self.std}; expected "
                "numbers, and a std above 0."
            )


class Ensemble:
    """A weighted sum of scorers as a `Scorer`. A row that one part cannot score has no score."""

    unit = "weighted sum"

    def __init__(self, parts: Sequence[Part], name: str = "ensemble") -> None:
        if not parts:
            raise UserError("An ensemble needs at least one part.")
        self.parts, self.name = tuple(parts), name

    @classmethod
    def fitted(
        cls,
        parts: Mapping[str, float] | Sequence[Part],
        prompts: Sequence[str],
        images: Sequence[ImageLike],
        **options: Any,
    ) -> Ensemble:
        """Return an ensemble whose means and deviations are those of the parts' scores on these rows.

        parts: scorer's name -> weight, or Parts. options: for `load_scorer`, of all. Rows without a score are left out.
        """
        from rewards.loading import load_scorer

        if isinstance(parts, Mapping):
            parts = [Part(load_scorer(name, **options), weight) for name, weight in parts.items()]
        fitted = []
        for part, batch in zip(parts, score_together([p.scorer for p in parts], prompts, images), strict=True):
            values = batch.values[batch.ok]
            if len(values) < 2 or not values.std() > 0:
                raise UserError(
                    f"{part.scorer.name} gives no two different scores on these rows, so it has no deviation."
                )
            fitted.append(replace(part, mean=float(values.mean()), std=float(values.std(ddof=1))))
        return cls(fitted)

    def score(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> ScoreBatch:
        """Return the weighted sum for each row; see `rewards.protocol.Scorer`. Shared work is done once."""
        batches = score_together([part.scorer for part in self.parts], prompts, images)
        values = np.zeros(len(prompts))
        failures: dict[int, str] = {}
        for part, batch in zip(self.parts, batches, strict=True):
            values += part.weight * (batch.values - part.mean) / part.std
            for row, reason in batch.failures.items():
                failures.setdefault(row, f"{batch.scorer}: {reason}")
        return ScoreBatch(
            values,
            self.name,
            self.unit,
            weights=self._hash(batches),
            preprocess="; ".join(dict.fromkeys(batch.preprocess for batch in batches)),
            dtype=", ".join(dict.fromkeys(batch.dtype for batch in batches)),
            failures=failures,
            truncated=frozenset().union(*(batch.truncated for batch in batches)) - failures.keys(),
        )

    def score_images(self, prompt: str, images: Sequence[ImageLike]) -> ScoreBatch:
        """Return the score of each image for one prompt."""
        return score_images(self, prompt, images)

    def score_matrix(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> ScoreMatrix:
        """Return the score of every prompt with every image, (P, I)."""
        return score_matrix(self, prompts, images)

    def score_tensor(self, prompts: Sequence[str], images: Tensor) -> Tensor:
        """Return (B,) float32 with gradients to the pixels; UserError where a part has no such way."""
        import torch

        terms = []
        for part in self.parts:
            if not isinstance(part.scorer, StagedScorer | Ensemble):
                raise UserError(f"{part.scorer.name} cannot be differentiated: it has no score_tensor.")
            terms.append(part.weight * (part.scorer.score_tensor(prompts, images) - part.mean) / part.std)
        return torch.stack(terms).sum(0)

    def _hash(self, batches: Sequence[ScoreBatch]) -> str:
        import json
        from hashlib import blake2b

        made_by = [
            [b.scorer, b.unit, b.weights, p.weight, p.mean, p.std] for p, b in zip(self.parts, batches, strict=True)
        ]
        return blake2b(json.dumps(made_by).encode(), digest_size=16).hexdigest()


def load(source: str | None = None, *, device: str | None = None, batch_size: int = 64, **options: Any) -> Ensemble:
    """Return the ensemble that a YAML file describes: a list of parts, each with `scorer` (as load_scorer takes it), and
    where wanted `weight`, `mean`, `std` and `options` (arguments of that scorer). options here go to every part.
    """
    import yaml

    from rewards.loading import load_scorer

    if not source or not Path(source).is_file():
        raise UserError(
            f"An ensemble is described by a YAML file; there is none at {source!r}. Write ensemble:FILE.yaml."
        )
    try:
        listed = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{source} cannot be read: {error}") from None
    if not isinstance(listed, list) or not all(isinstance(item, dict) and "scorer" in item for item in listed):
        raise UserError(f"{source} must hold a list of parts, each with 'scorer' and perhaps {', '.join(_FIELDS[1:])}.")
    parts = []
    for item in listed:
        for field in item:
            if field not in _FIELDS:
                raise UserError(f"{source}: {unknown('field', str(field), _FIELDS)}")
        own = {"device": device, "batch_size": batch_size, **options, **(item.get("options") or {})}
        numbers = {field: _number(item[field], field, source) for field in ("weight", "mean", "std") if field in item}
        parts.append(Part(load_scorer(item["scorer"], **own), **numbers))
    return Ensemble(parts, f"ensemble:{Path(source).stem}")


def _number(value: object, field: str, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{source}: {field} must be a number, not {value!r}.")
    return float(value)

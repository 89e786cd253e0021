"""InternVL (2.5 and later, in the layout of transformers): an image is a thumbnail and up to twelve tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlm.batch import Pixels
from vlm.families.base import Family


class InternVL(Family):
    def rows(self, pixels: Pixels, tokens: Sequence[int]) -> list[int]:
        per_tile = sum(tokens) // len(pixels["pixel_values"])
        return [count // per_tile for count in tokens]

    def features(self, model: Any, pixels: Pixels) -> Tensor:
        return model.get_image_features(**pixels, return_dict=True).pooler_output.flatten(0, 1)[None]

    def encoder_output(self, features: Tensor) -> Any:
        return BaseModelOutputWithPooling(pooler_output=features)

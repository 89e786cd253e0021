"""Idefics3 (2408.12637) and SmolVLM (2504.05299): images cut into tiles, each tile a row of its own tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlm.batch import Pixels
from vlm.families.base import Family, Part


class Idefics3(Family):
    """The processor puts all tiles of a prompt into one row; here an image is a row of its tiles."""

    parts: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        "language": ("model.text_model", "lm_head"),
        "projector": ("model.connector",),
        "tower": ("model.vision_model",),
    }

    def split(self, pixels: Pixels, tokens: Sequence[int]) -> list[Pixels]:
        vision = self.config.vision_config
        per_tile = (vision.image_size // vision.patch_size) ** 2 // self.config.scale_factor**2
        tiles = [count // per_tile for count in tokens]
        each = {name: tensor.split(tiles, dim=1) for name, tensor in pixels.items()}
        return [{name: parts[k] for name, parts in each.items()} for k in range(len(tiles))]

    def features(self, model: Any, pixels: Pixels) -> Tensor:
        """The model takes a tile of zeros for padding; here the mask says what is, so that a blank image stays one."""
        real = pixels["pixel_attention_mask"].flatten(2).any(-1)[..., None, None, None]
        tiles = torch.where(real, pixels["pixel_values"] + 1e-9, 0.0)
        return super().features(model, {**pixels, "pixel_values": tiles})

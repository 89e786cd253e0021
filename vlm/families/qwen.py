"""Qwen2-VL (2409.12191), Qwen2.5-VL (2502.13923) and Qwen3-VL (2511.21631): images of any size, M-RoPE, deepstack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlm.batch import Pixels
from vlm.families.base import Family, Part


class QwenVL(Family):
    """Qwen2-VL and Qwen2.5-VL: pixels are rows of patches, `image_grid_thw` says how they lie."""

    parts: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        "language": ("model.language_model", "lm_head"),
        "projector": ("model.visual.merger",),
        "tower": ("model.visual",),
    }

    def rows(self, pixels: Pixels, tokens: Sequence[int]) -> list[int]:
        return pixels["image_grid_thw"].prod(-1).tolist()

    def positions(self, prompt: Tensor, images: Sequence[Pixels]) -> tuple[Tensor, int]:
        """Return time, height and width positions `(3, P)`: text counts on all three, an image spans a box (M-RoPE)."""
        grids = iter([image["image_grid_thw"][0].tolist() for image in images])
        merge = self.config.vision_config.spatial_merge_size
        rows: list[Tensor] = []
        here = at = 0
        is_image = (prompt == self.image_token_id).tolist()
        while at < len(prompt):
            if is_image[at]:
                time, height, width = next(grids)
                height, width = height // merge, width // merge
                box = torch.meshgrid(*(torch.arange(side) for side in (time, height, width)), indexing="ij")
                rows.append(torch.stack([axis.flatten() for axis in box]) + here)
                here, at = here + max(height, width), at + time * height * width
            else:
                until = next((k for k in range(at, len(prompt)) if is_image[k]), len(prompt))
                rows.append(torch.arange(here, here + until - at).expand(3, -1))
                here, at = here + until - at, until
        return torch.cat(rows, dim=1), here

    def own_inputs(self, ids: Tensor, in_answer: Tensor, grids: Tensor | None) -> dict[str, Any]:
        if grids is None:
            return {}
        return {"mm_token_type_ids": (ids == self.image_token_id).int(), "image_grid_thw": grids}


class Qwen3VL(QwenVL):
    """Qwen3-VL also feeds features of earlier tower layers to the first layers of the language model (deepstack)."""

    parts: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        **QwenVL.parts,
        "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
    }

    def features(self, model: Any, pixels: Pixels) -> Tensor:
        found = model.get_image_features(**pixels, return_dict=True)
        layers = [found.pooler_output, *found.deepstack_features]
        return torch.stack([torch.cat(list(layer)) for layer in layers])

    def encoder_output(self, features: Tensor) -> Any:
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=[features[0]], deepstack_features=[[layer] for layer in features[1:]]
        )

"""LLaVA-1.5 and LLaVA-NeXT: a CLIP tower of which the last layers go unused, an MLP, any causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from palate.errors import UserError
from vlm.batch import Pixels
from vlm.families.base import Family


class Llava(Family):
    """LLaVA-1.5 (2310.03744)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.vision_config.model_type == "pixtral":
            raise UserError("LLaVA with a Pixtral tower is not covered; its CLIP and SigLIP versions are.")
        taken = config.vision_feature_layer
        depth = config.vision_config.num_hidden_layers
        layers = [taken] if isinstance(taken, int) else list(taken)
        # hidden_states[0] are the embeddings, so hidden state k comes out of layer k - 1.
        self._used = max(layer if layer >= 0 else depth + 1 + layer for layer in layers)

    def idle(self, name: str) -> bool:
        if self.part_of(name) != "tower":
            return False
        words = name.split(".")
        if "layers" in words[:-1]:
            return int(words[words.index("layers") + 1]) >= self._used
        return "post_layernorm" in words or "head" in words

    def prepare(self, processor: Any) -> None:
        """Old processors do not say how an image becomes tokens; the model does."""
        if processor.patch_size is None:
            processor.patch_size = self.config.vision_config.patch_size
        if processor.vision_feature_select_strategy is None:
            processor.vision_feature_select_strategy = self.config.vision_feature_select_strategy


class LlavaNext(Llava):
    """LLaVA-NeXT (1.6): the image and up to four tiles of it, filled up to as many as the largest image has."""

    def split(self, pixels: Pixels, tokens: Sequence[int]) -> list[Pixels]:
        images = super().split(pixels, tokens)
        sides = self.config.image_grid_pinpoints, self.config.vision_config.image_size
        counts = [image_size_to_num_patches(image["image_sizes"][0], *sides) for image in images]
        return [{**image, "pixel_values": image["pixel_values"][:, :n]} for image, n in zip(images, counts)]

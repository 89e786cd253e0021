"""Gemma 3 (2503.19786) and PaliGemma (2407.07726): tokens that see each other both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from palate.conversations import IMAGE, Message
from palate.errors import UserError
from vlm.batch import Pixels
from vlm.families.base import Family


class _Gemma(Family):
    def idle(self, name: str) -> bool:
        return self.part_of(name) == "tower" and "head" in name.split(".")

    def split(self, pixels: Pixels, tokens: Sequence[int]) -> list[Pixels]:
        if len(pixels["pixel_values"]) != len(tokens):
            raise UserError("The processor cuts images into crops (pan and scan). Save it with do_pan_and_scan off.")
        return super().split({"pixel_values": pixels["pixel_values"]}, tokens)

    def features(self, model: Any, pixels: Pixels) -> Tensor:
        return model.get_image_features(**pixels, return_dict=True).pooler_output.flatten(0, 1)[None]

    def encoder_output(self, features: Tensor) -> Any:
        return BaseModelOutputWithPooling(pooler_output=features)


class Gemma3(_Gemma):
    """The tokens of an image see each other, also across the sliding window of local layers."""

    def blocks(self, prompt: Tensor) -> Tensor:
        image = prompt == self.image_token_id
        begins = image & ~torch.cat([image.new_zeros(1), image[:-1]])
        return torch.where(image, begins.cumsum(0) - 1, -1)

    def own_inputs(self, ids: Tensor, in_answer: Tensor, grids: Tensor | None) -> dict[str, Any]:
        return {"token_type_ids": (ids == self.image_token_id).long()}


class PaliGemma(_Gemma):
    """The whole prompt is one block; positions begin at 1. There is no chat: the turns are lines of one prompt."""

    masks_by_layer: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.softcap = getattr(self.text_config, "final_logit_softcapping", None)

    def write_prompt(self, messages: Sequence[Message], image_token: str) -> str:
        images = sum(message.places for message in messages)
        lines = ["".join(part for part in message.parts if part is not IMAGE).strip() for message in messages]
        return image_token * images + "\n".join(lines)

    def positions(self, prompt: Tensor, images: Sequence[Pixels]) -> tuple[Tensor, int]:
        return torch.arange(1, len(prompt) + 1)[None], len(prompt) + 1

    def blocks(self, prompt: Tensor) -> Tensor:
        return torch.zeros_like(prompt)

    def own_inputs(self, ids: Tensor, in_answer: Tensor, grids: Tensor | None) -> dict[str, Any]:
        return {"token_type_ids": in_answer.long()}

    def why_not_shared(self, width: int) -> str | None:
        if self.window is not None and width > self.window:
            return f"rows of {width} tokens are longer than its sliding window of {self.window}"
        return super().why_not_shared(width)

"""What a family knows of its architecture; the defaults are LLaVA's.

`D` images, `n` tokens of all of them together, `K` layers that take features (1, more with deepstack), `R` rows of rotary
positions, `P` tokens of a prompt, `L` of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from palate.conversations import Message
from palate.errors import UserError
from vlm.batch import Pixels

Part = Literal["language", "projector", "tower"]


class Family:
    """One vision-language architecture. It holds the configuration and no weights, so that data workers can have it."""

    parts: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        "language": ("model.language_model", "lm_head"),
        "projector": ("model.multi_modal_projector",),
        "tower": ("model.vision_tower",),
    }
    """Part -> prefixes of its modules' names; the longest prefix wins."""
    masks_by_layer: ClassVar[bool] = True
    """True where the model takes a mask for each type of attention layer."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.text_config = config.get_text_config()
        self.image_token_id: int = config.image_token_id
        self.softcap: float | None = None
        """Cap c of the logits, `c tanh(logits / c)`, where the model has one."""

    # --- parts -------------------------------------------------------------------------------------------------------

    def part_of(self, name: str) -> Part | None:
        """Return the part that a module or parameter belongs to, by its name; None for what belongs to no part."""
        found = [
            (len(prefix), part)
            for part, prefixes in self.parts.items()
            for prefix in prefixes
            if name == prefix or name.startswith(f"{prefix}.")
        ]
        return max(found)[1] if found else None

    def idle(self, name: str) -> bool:
        """True for modules and parameters that no answer depends on; they must not train (DDP waits for gradients)."""
        return False

    # --- prompts -----------------------------------------------------------------------------------------------------

    def write_prompt(self, messages: Sequence[Message], image_token: str) -> str:
        """Return the prompt of a processor without a chat template; raises UserError where the family needs one."""
        raise UserError(
            "The processor has no chat template. Take a newer revision of the model, or save the processor with a "
            "`chat_template.jinja` beside it."
        )

    def prepare(self, processor: Any) -> None:
        """Set what transformers leaves to the caller of a processor."""

    # --- images ------------------------------------------------------------------------------------------------------

    def split(self, pixels: Pixels, tokens: Sequence[int]) -> list[Pixels]:
        """Return the images of one prompt, one by one. pixels: as the processor gives them. tokens: of each image."""
        return self.each(pixels, tokens)

    def each(self, pixels: Pixels, tokens: Sequence[int]) -> list[Pixels]:
        """Return joined images one by one; the inverse of `join`, but for what it filled up."""
        rows = self.rows(pixels, tokens)
        parts = {name: tensor.split(rows if name == "pixel_values" else 1) for name, tensor in pixels.items()}
        return [{name: pieces[k] for name, pieces in parts.items()} for k in range(len(rows))]

    def rows(self, pixels: Pixels, tokens: Sequence[int]) -> list[int]:
        """Return how many leading rows of `pixel_values` each image has."""
        return [1] * len(tokens)

    def join(self, images: Sequence[Pixels]) -> Pixels:
        """Return several images as one, along the leading dimension; others are filled up with zeros."""
        return {name: _concatenate([image[name] for image in images]) for name in images[0]}

    def features(self, model: Any, pixels: Pixels) -> Tensor:
        """Return what the language model takes in place of the image tokens, `(K, n, width)`."""
        found = model.get_image_features(**pixels, return_dict=True).pooler_output
        return torch.cat(list(found))[None]

    def encoder_output(self, features: Tensor) -> Any:
        """Return features `(K, n, width)` as the model's own `get_image_features` would."""
        return BaseModelOutputWithPooling(pooler_output=[features[0]])

    # --- rows of tokens ----------------------------------------------------------------------------------------------

    def positions(self, prompt: Tensor, images: Sequence[Pixels]) -> tuple[Tensor, int]:
        """Return the rotary positions `(R, P)` of a prompt `(P,)`, and the position after it."""
        return torch.arange(len(prompt))[None], len(prompt)

    def blocks(self, prompt: Tensor) -> Tensor:
        """Return a number for each token of a prompt `(P,)`: equal ones >= 0 see each other both ways, -1 is causal."""
        return torch.full_like(prompt, -1)

    def own_inputs(self, ids: Tensor, in_answer: Tensor, grids: Tensor | None) -> dict[str, Any]:
        """Return what, besides ids and a 2-D mask, the model needs to make masks and positions of plain rows itself.

        ids, in_answer: `(rows, L)`. grids: `(N, 3)` patches of the images at all places in order, where images have any.
        """
        return {}

    def masks(self, full: Tensor, sliding: Tensor | None) -> Any:
        """Return 4-D masks as the model takes them. sliding: the mask within the window, where some layers have one."""
        types = set(getattr(self.text_config, "layer_types", None) or ())
        if "sliding_attention" in types and self.masks_by_layer:
            return {name: sliding if name == "sliding_attention" else full for name in types}
        return full if sliding is None or types else sliding

    @property
    def window(self) -> int | None:
        """How many tokens back layers with sliding attention see; None where no layer has it."""
        types = getattr(self.text_config, "layer_types", None)
        slides = types is None or "sliding_attention" in types
        return getattr(self.text_config, "sliding_window", None) if slides else None

    def why_not_shared(self, width: int) -> str | None:
        """Return why rows of so many tokens cannot share a prompt; None where they can."""
        types = set(getattr(self.text_config, "layer_types", None) or ())
        other = types - {"full_attention", "sliding_attention"}
        return f"its layers of {', '.join(sorted(other))} run over the whole row" if other else None

    def head(self, model: Any, hidden: Tensor) -> Tensor:
        """Return logits `(N, V)` of hidden states `(N, width)`."""
        head: nn.Module = model.get_output_embeddings()
        logits = head(hidden)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    sizes = [max(tensor.shape[d] for tensor in tensors) for d in range(1, tensors[0].ndim)]
    filled = []
    for tensor in tensors:
        gaps = [size - have for size, have in zip(sizes, tensor.shape[1:], strict=True)]
        filled.append(
            nn.functional.pad(tensor, [n for gap in reversed(gaps) for n in (0, gap)]) if any(gaps) else tensor
        )
    return torch.cat(filled)

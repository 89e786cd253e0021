"""What the model is asked: prompts with their images, and several answers to each.

`B` prompts, `A` answers to each, `P` tokens of the longest prompt, `T` of the longest answer. Prompts and answers are
padded on the right and lie apart, so that a batch can be laid out with the prompt shared by its answers or repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

Pixels = dict[str, Tensor]
"""What the vision tower takes for one image or several, by the names of transformers; rows of images come first."""


@dataclass(frozen=True)
class Encoded:
    """One prompt with its images and the A answers to it, as tokens on the CPU."""

    prompt: Tensor
    """(P,) token ids, image tokens expanded."""
    answers: tuple[Tensor, ...]
    """A tensors (T,) of token ids."""
    complete: tuple[bool, ...]
    """True where the answer still has its end-of-turn token, False where it was cut."""
    images: tuple[Pixels, ...] = ()
    """The processed images, in the order of their places."""
    keys: tuple[str, ...] = ()
    """A hash of each processed image: equal images have equal keys."""
    image_tokens: tuple[int, ...] = ()
    """Tokens of each image."""


@dataclass(frozen=True)
class Batch:
    """B prompts and A answers to each. Make it with `Encoder.collate`."""

    prompt: Tensor  # (B, P) token ids
    prompt_lengths: Tensor  # (B,)
    positions: Tensor  # (R, B, P) rotary positions; R rows (1, or 3 for M-RoPE)
    next_position: Tensor  # (B,) position of the first token of any answer
    blocks: Tensor  # (B, P) prompt tokens with the same number >= 0 see each other both ways; -1 is causal
    answers: Tensor  # (B, A, T) token ids
    answer_lengths: Tensor  # (B, A)
    complete: Tensor  # (B, A) bool: the answer was not cut and ends with its end-of-turn token
    images: tuple[tuple[int, ...], ...]  # for each prompt, which distinct image stands at each of its places
    pixels: Pixels  # the D distinct images; a blank one, which no place names, where the batch has none
    features: tuple[Tensor, ...] | None = None
    """D features (K, n, width) that stand for `pixels` where the tower is frozen, as `AnswerScores.features` gives."""
    keys: tuple[str, ...] = ()
    """A hash of each distinct image, D of them."""
    image_tokens: tuple[int, ...] = ()
    """Tokens of each distinct image."""

    @property
    def mask(self) -> Tensor:
        """True at tokens of answers, (B, A, T) bool."""
        return torch.arange(self.answers.shape[-1], device=self.answers.device) < self.answer_lengths[..., None]

    def only(self, *answers: int) -> Batch:
        """Return the batch with these answers alone, in this order."""
        lengths = self.answer_lengths[:, answers]
        return replace(
            self, answers=self.answers[:, answers], answer_lengths=lengths, complete=self.complete[:, answers]
        )

    def with_pixels(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `change` applied to the tower's normalised pixel values (noise, say)."""
        pixels = {**self.pixels, "pixel_values": change(self.pixels["pixel_values"])}
        return replace(self, pixels=pixels, features=None, keys=())

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """Return the batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory (called by the data loader)."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, **{f.name: _moved(getattr(self, f.name), move) for f in fields(self)})


def _moved(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, dict):
        return {name: move(tensor) for name, tensor in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(item, move) for item in value)
    return value


def padded(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    """Return tensors (..., n) as one (len(rows), ..., longest n), filled up on the right."""
    longest = max(row.shape[-1] for row in rows)
    return torch.stack([torch.nn.functional.pad(row, (0, longest - row.shape[-1]), value=value) for row in rows])

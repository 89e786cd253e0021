"""Prompts -> token ids, with the prompts told that were too long. Truncation keeps the end mark, where pooling looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """ids: (B, T) int64. mask: (B, T) int64, 0 on padding. truncated: (B,) bool."""

    ids: Tensor
    mask: Tensor
    truncated: np.ndarray


class Tokenizer(Protocol):
    """Prompts -> Tokens. version: what decides the ids, for cache keys."""

    version: str

    def __call__(self, prompts: Sequence[str]) -> Tokens: ...


class OpenClipTokenizer:
    """A tokenizer of open_clip. It pads to `length` and knows no mask: open_clip's models find the end mark by its id."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        import open_clip

        self.version = f"open_clip {open_clip.__version__} {type(tokenizer).__name__} {length}"
        self._tokenizer, self._length = tokenizer, length
        short = self._ids(["a"])
        self._padding = short[0, -1]
        # A kind that ends every text with a mark of its own at the last place gives no sign of what it cut off.
        self._tells = not self._changes(["a"], short).any()

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        texts = list(prompts)
        ids = self._ids(texts)
        cut = np.zeros(len(texts), dtype=bool)
        # Two places, since some pad with the end mark. What ends in padding was not cut, and need not be read again.
        full = np.flatnonzero((ids[:, -2:] != self._padding).any(1).numpy())
        if self._tells and full.size:
            cut[full] = self._changes([texts[k] for k in full], ids[full])
        return Tokens(ids, torch.ones_like(ids), cut)

    def _ids(self, prompts: list[str], room: int = 0) -> Tensor:
        return self._tokenizer(prompts, context_length=self._length + room)

    def _changes(self, prompts: list[str], ids: Tensor) -> np.ndarray:
        """Return which prompts have other ids where there is room for one more: of those something was cut off."""
        return (ids != self._ids(prompts, room=1)[:, : self._length]).any(1).numpy()


class TransformersTokenizer:
    """A tokenizer of transformers. It pads to the longest prompt of a batch, or to `length` where `pad_to_length`."""

    def __init__(self, tokenizer: Any, length: int, *, pad_to_length: bool = False) -> None:
        import transformers

        self.version = f"transformers {transformers.__version__} {type(tokenizer).__name__} {length}"
        self._tokenizer, self._length = tokenizer, length
        self._padding = "max_length" if pad_to_length else "longest"

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        texts = list(prompts)
        found = self._tokenizer(
            texts, truncation=True, max_length=self._length, padding=self._padding, return_tensors="pt"
        )
        longer = self._tokenizer(texts, truncation=True, max_length=self._length + 1)["input_ids"]
        return Tokens(
            found["input_ids"], found["attention_mask"], np.array([len(ids) > self._length for ids in longer])
        )


def clip_tokenizer() -> Any:
    """Return transformers' CLIP tokenizer with the vocabulary that all CLIP models share, from the file open_clip ships.

    Folders of fine-tuned CLIP models, PickScore's among them, often hold no tokenizer.
    """
    import open_clip
    from transformers import CLIPTokenizer

    simple = open_clip.SimpleTokenizer()
    names = {simple.sot_token_id: "<|startoftext|>", simple.eot_token_id: "<|endoftext|>"}
    vocabulary = {names.get(number, token): number for token, number in simple.encoder.items()}
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in merges], model_max_length=77)

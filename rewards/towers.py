"""Two encoders into one space, an image's and a prompt's, and the vectors of many images and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.cache import Cache, key
from rewards.devices import Dtype, Portions, torch_dtype
from rewards.preprocess import Preprocess
from rewards.rows import Rows
from rewards.stages import Work, watched
from rewards.text import Tokenizer, Tokens
from rewards.weights import Loaded

_KEPT_BACK = 16  # batches whose vectors wait to be written to the cache


@dataclass(frozen=True)
class Towers:
    """A CLIP-like model, whichever library it comes from. Frozen, in evaluation mode.

    encode_image: (B, 3, H, W) of `dtype` on `device` -> (B, D), not normalised.
    encode_text: Tokens on `device` -> (B, D), not normalised.
    scale, bias: the model's own logit is scale * cosine + bias.
    weights: hash of weights and configuration.
    """

    label: str
    loaded: Loaded
    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Tokens], Tensor]
    preprocess: Preprocess
    scale: float
    bias: float
    weights: str
    dtype: Dtype
    device: torch.device

    @property
    def model(self) -> Any:
        """The module behind both encoders."""
        return self.loaded.model

    @property
    def tokenizer(self) -> Tokenizer:
        """What reads prompts."""
        return self.loaded.reader

    def images(self, pixels: Tensor) -> Tensor:
        """Return (B, D) of (B, 3, H, W) as the geometry makes them: uint8, or float from 0 to 1."""
        if self.device.type == "cuda":  # so that copying one batch and encoding another go on at once
            pixels = pixels.pin_memory()
        return self.encode(self.preprocess.normalise(pixels.to(self.device, non_blocking=True)))

    def encode(self, pixels: Tensor) -> Tensor:
        """Return (B, D) of normalised pixels (B, 3, H, W); differentiable."""
        exact = torch_dtype(self.dtype)
        return self.encode_image(pixels.to(exact)).to(exact)

    def texts(self, tokens: Tokens) -> Tensor:
        """Return (B, D) of token ids."""
        there = Tokens(tokens.ids.to(self.device), tokens.mask.to(self.device), tokens.truncated)
        return self.encode_text(there).to(torch_dtype(self.dtype))


def unit(vectors: Tensor) -> Tensor:
    """Return (N, D) float32 of length 1."""
    return F.normalize(vectors.float(), dim=-1)


class Embedder:
    """Encodes distinct images and prompts with one pair of towers, in portions, and from the cache what it holds.

    What is cached is the encoder's raw answer in its own dtype, so that a score is the same with the cache or without.
    """

    def __init__(self, towers: Towers, batch_size: int, cache: Cache | None) -> None:
        self.towers, self.batch_size, self.cache = towers, batch_size, cache
        self.image_portions, self._text_portions = Portions(batch_size), Portions(batch_size)

    def begin(self, rows: Rows) -> ImageVectors:
        """Return the work of embedding the rows' images."""
        return ImageVectors(self, rows)

    def texts(self, prompts: Sequence[str]) -> tuple[Tensor, np.ndarray]:
        """Return (N, D) unit vectors of distinct prompts, on the CPU, and (N,) which were cut short."""
        towers, vectors = self.towers, Vectors(len(prompts))
        cut = np.zeros(len(prompts), dtype=bool)
        keys = [key("text", prompt, towers.tokenizer.version, towers.weights, towers.dtype) for prompt in prompts]
        kept = self.cache.get(keys) if self.cache else {}
        for index, name in enumerate(keys):
            if name in kept:
                cut[index] = kept[name][:1] == b"1"
                vectors.put([index], _tensor(kept[name][1:], towers.dtype)[None])
        todo = [index for index, name in enumerate(keys) if name not in kept]
        starts = range(0, len(todo), self.batch_size)
        for start in watched(starts, len(starts), f"{towers.label}: prompts"):
            part = todo[start : start + self.batch_size]
            tokens = towers.tokenizer([prompts[i] for i in part])
            with torch.inference_mode():
                found = self._text_portions.run(partial(_texts, towers, tokens), len(part))
            vectors.put(part, found)
            cut[part] = tokens.truncated
            if self.cache:
                self.cache.put(
                    {keys[i]: (b"1" if c else b"0") + _bytes(v) for i, v, c in zip(part, found.cpu(), tokens.truncated)}
                )
        return unit(vectors.joined()), cut

    def key_of(self, content: str) -> bytes:
        """Return the cache key of an image."""
        towers = self.towers
        return key("image", content, towers.preprocess.version, towers.weights, towers.dtype)


class ImageVectors(Work):
    """The embedding of the rows' distinct images, and of prompts as they are asked for.

    Images' vectors stay on the device for a while: fetching each batch's would stop it.
    """

    def __init__(self, embedder: Embedder, rows: Rows) -> None:
        towers = embedder.towers
        self.key = ("vectors", towers.weights, towers.preprocess, towers.dtype, str(towers.device))
        self.prepare, self.batch_size = towers.preprocess.geometry, embedder.batch_size
        self._embedder, self._rows, self.refused = embedder, rows, {}
        self._vectors = Vectors(len(rows.images))
        self._unsaved: list[tuple[list[int], Tensor]] = []
        self._read: dict[str, tuple[Tensor, bool]] = {}

    def start(self) -> Sequence[int]:
        cache = self._embedder.cache
        if not cache:
            return range(len(self._rows.images))
        keys = [self._embedder.key_of(content) for content in self._rows.keys]
        kept = cache.get(keys)
        known = [index for index, name in enumerate(keys) if name in kept]
        if known:
            values = [_tensor(kept[keys[index]], self._embedder.towers.dtype) for index in known]
            self._vectors.put(known, torch.stack(values))
        return [index for index, name in enumerate(keys) if name not in kept]

    def take(self, indices: list[int], inputs: list[Any]) -> None:
        embedder = self._embedder
        pixels = torch.stack(inputs)
        with torch.inference_mode():
            found = embedder.image_portions.run(lambda where: embedder.towers.images(pixels[where]), len(pixels))
        self._vectors.put(indices, found)
        if embedder.cache:
            self._unsaved.append((indices, found))
            if len(self._unsaved) == _KEPT_BACK:
                self._save(embedder.cache)

    def vectors(self) -> Tensor:
        """Return (distinct images, D) unit vectors on the CPU; NaN where an image could not be read."""
        if self._embedder.cache:
            self._save(self._embedder.cache)
        return unit(self._vectors.joined())

    def texts(self, prompts: Sequence[str]) -> tuple[Tensor, np.ndarray]:
        """Return what `Embedder.texts` does; prompts that another scorer has asked for are there already."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._read]
        if new:
            vectors, cut = self._embedder.texts(new)
            self._read |= {prompt: (v, bool(c)) for prompt, v, c in zip(new, vectors, cut, strict=True)}
        found = [self._read[prompt] for prompt in prompts]
        return torch.stack([vector for vector, _ in found]), np.array([cut for _, cut in found])

    def _save(self, cache: Cache) -> None:
        entries = {}
        for indices, found in self._unsaved:
            for index, vector in zip(indices, found.cpu(), strict=True):
                entries[self._embedder.key_of(self._rows.keys[index])] = _bytes(vector)
        if entries:
            cache.put(entries)
        self._unsaved.clear()


class Vectors:
    """N rows that arrive in parts, of a width that the first part tells. Rows that never arrive are NaN."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._parts: list[tuple[list[int], Tensor]] = []

    def put(self, indices: list[int], part: Tensor) -> None:
        """Take the rows of some indices, wherever they are."""
        self._parts.append((indices, part))

    def joined(self) -> Tensor:
        """Return (N, D) float32 on the CPU."""
        width = self._parts[0][1].shape[-1] if self._parts else 0
        found = torch.full((self._count, width), torch.nan)
        for indices, part in self._parts:
            found[indices] = part.cpu().float()
        return found


def _texts(towers: Towers, tokens: Tokens, where: slice) -> Tensor:
    return towers.texts(Tokens(tokens.ids[where], tokens.mask[where], tokens.truncated[where]))


def _bytes(vector: Tensor) -> bytes:
    return vector.contiguous().view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes, dtype: Dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch_dtype(dtype))

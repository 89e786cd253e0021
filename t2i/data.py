"""Pairs of images -> tensors, with every random choice a function of (seed, pair, visit).

Both images of a pair are resized, cropped and flipped alike, and share timestep, noise and caption dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tv

from palate.randomness import generator, uniform
from palate.records import Pair
from t2i.families.base import Conditioning, Family, Frame


@dataclass
class ImageConfig:
    """How images become pixels."""

    resolution: NonNegativeInt = 0
    """Side of the square training images in pixels; 0 takes the model's own."""
    crop: Literal["center", "random"] = "center"
    """Where the square is cut from the resized image; the same place in both images of a pair."""
    flip: bool = False
    """Mirror half of the pairs. Leave off where captions speak of left and right."""
    caption_dropout: ClosedUnitInterval = 0.0
    """Share of visits on which a pair is trained without its caption, for classifier-free guidance."""


@dataclass(frozen=True)
class Example:
    """One pair on one visit, ready to be batched. `C h w` is the latent's shape."""

    pixels: Tensor  # (2, 3, H, W) in [-1, 1], chosen first
    captions: tuple[str, str]
    frames: tuple[Frame, Frame]
    timestep: Tensor  # 0-d
    noise: Tensor  # (C, h, w), shared
    vae_noise: Tensor  # (2, C, h, w)
    p_chosen: float
    score_gap: float


@dataclass(frozen=True)
class Batch:
    """B pairs; images come as 2B with all chosen first."""

    pixels: Tensor  # (2B, 3, H, W)
    tokens: Conditioning  # each (2B, ...)
    timestep: Tensor  # (B,)
    noise: Tensor  # (B, C, h, w)
    vae_noise: Tensor  # (2B, C, h, w)
    p_chosen: Tensor  # (B,)
    score_gap: Tensor  # (B,), NaN where unknown

    def to(self, device: torch.device, non_blocking: bool = True) -> Batch:
        """Return the batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory (called by the data loader)."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> Batch:
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = {k: move(v) for k, v in value.items()} if isinstance(value, dict) else move(value)
        return Batch(**moved)


class Pairs(Protocol):
    """Pairs by number, with their pictures."""

    def __len__(self) -> int: ...

    def decoded(self, index: int) -> tuple[Pair, Image.Image, Image.Image]:
        """Return a pair and its pictures (RGB), chosen first."""


class PairList:
    """Pairs held in memory."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def decoded(self, index: int) -> tuple[Pair, Image.Image, Image.Image]:
        pair = self.pairs[index]
        return pair, pair.chosen.decode(), pair.rejected.decode()


class PairExamples(Dataset[Example]):
    """`examples[(index, visit)]` of pairs, with all draws of that visit."""

    def __init__(self, pairs: Pairs, family: Family, config: ImageConfig, seed: int, *, dual: bool) -> None:
        self.pairs, self.config, self.seed, self.dual = pairs, config, seed, dual
        self.side = config.resolution or family.resolution
        self.latent_shape = family.latent_shape(self.side, self.side)
        self._draw_timestep = family.draw_timestep

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: tuple[int, int | str]) -> Example:
        index, visit = place
        return self.example(*self.pairs.decoded(index), visit)

    def example(self, pair: Pair, chosen: Image.Image, rejected: Image.Image, visit: int | str) -> Example:
        """Return a pair with the draws of its `visit` (a count, or a name for draws outside of training)."""
        seed, shape = self.seed, self.latent_shape
        across, down = (0.5, 0.5) if self.config.crop == "center" else (
            uniform(seed, pair.id, visit, "crop across"),
            uniform(seed, pair.id, visit, "crop down"),
        )  # fmt: skip
        mirrored = self.config.flip and uniform(seed, pair.id, visit, "flip") < 0.5
        dropped = uniform(seed, pair.id, visit, "caption dropout") < self.config.caption_dropout
        first, second = (cut(image, self.side, across, down) for image in (chosen, rejected))
        pixels = torch.stack([first.pixels, second.pixels])
        return Example(
            pixels=pixels.flip(-1) if mirrored else pixels,
            frames=(first.frame, second.frame),
            captions=("", "") if dropped else self._captions(pair),
            timestep=self._draw_timestep(generator(seed, pair.id, visit, "timestep")),
            noise=torch.randn(shape, generator=generator(seed, pair.id, visit, "noise")),
            vae_noise=torch.stack(
                [
                    torch.randn(shape, generator=generator(seed, m.id, visit, "vae"))
                    for m in (pair.chosen, pair.rejected)
                ]
            ),
            p_chosen=pair.p_chosen,
            score_gap=float("nan") if pair.score_gap is None else pair.score_gap,
        )

    def _captions(self, pair: Pair) -> tuple[str, str]:
        if not self.dual:
            return pair.prompt, pair.prompt
        return pair.prompt_chosen or pair.prompt, pair.prompt_rejected or pair.prompt


class Cut(NamedTuple):
    """A square of a picture, and where it was."""

    pixels: Tensor  # (3, side, side) in [-1, 1]
    frame: Frame


def cut(image: Image.Image, side: int, across: float = 0.5, down: float = 0.5) -> Cut:
    """Return a square: the shorter edge resized to `side` (bicubic, antialiased), then cropped.

    across, down: where the square lies in what is left over, 0 (left, top) to 1.
    """
    original, left, top = (image.height, image.width), 0, 0
    if image.size != (side, side):
        scale = side / min(image.size)
        width, height = (max(side, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round(across * (width - side)), round(down * (height - side))
        image = image.crop((left, top, left + side, top + side))
    pixels = tv.pil_to_tensor(image).float().div_(127.5).sub_(1.0)
    return Cut(pixels, Frame(original, (top, left), (side, side)))


def collate(examples: Sequence[Example], family: Family) -> Batch:
    """Return a batch of B pairs with all chosen images first."""
    captions, frames = (
        [getattr(e, name)[side] for side in (0, 1) for e in examples] for name in ("captions", "frames")
    )
    return Batch(
        pixels=torch.cat([torch.stack([e.pixels[side] for e in examples]) for side in (0, 1)]),
        tokens=family.tokenize(captions, frames),
        timestep=torch.stack([e.timestep for e in examples]),
        noise=torch.stack([e.noise for e in examples]),
        vae_noise=torch.cat([torch.stack([e.vae_noise[side] for e in examples]) for side in (0, 1)]),
        p_chosen=torch.tensor([e.p_chosen for e in examples]),
        score_gap=torch.tensor([e.score_gap for e in examples]),
    )

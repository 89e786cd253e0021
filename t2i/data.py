"""Pairs of images -> tensors, with every random choice a function of (seed, pair, visit).

Both images of a pair are resized, cropped and flipped alike, and share timestep, noise and caption dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tv

from palate.errors import UserError
from palate.randomness import generator, uniform
from palate.records import Media, Pair
from palate.tensor_store import TensorStore
from t2i.cache import EncodingCache
from t2i.families.base import Conditioning, Family, Frame
from t2i.reference_cache import ReferenceErrors, error_key


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

    pixels: Tensor | None  # (2, 3, H, W) in [-1, 1], chosen first; None where the latents are known
    posterior: Tensor | None  # (2, 2, C, h, w), chosen first: mean and deviation of the latents, from a cache
    captions: tuple[str, str]
    frames: tuple[Frame, Frame]
    timestep: Tensor  # 0-d
    noise: Tensor  # (C, h, w), shared
    vae_noise: Tensor  # (2, C, h, w)
    p_chosen: float
    score_gap: float
    reference: Tensor | None = None  # (2,) errors of the reference, from a cache


@dataclass(frozen=True)
class Batch:
    """B pairs; images come as 2B with all chosen first."""

    pixels: Tensor | None  # (2B, 3, H, W); None where the latents are known
    posterior: Tensor | None  # (2, 2B, C, h, w): mean, deviation
    tokens: Conditioning  # each (2B, ...); empty where the conditioning is known
    conditioning: Conditioning  # each (2B, ...), from a cache
    timestep: Tensor  # (B,)
    noise: Tensor  # (B, C, h, w)
    vae_noise: Tensor  # (2B, C, h, w)
    p_chosen: Tensor  # (B,)
    score_gap: Tensor  # (B,), NaN where unknown
    reference: Tensor | None = None  # (2B,) errors of the reference, from a cache

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
            if isinstance(value, dict):
                moved[field.name] = {name: move(tensor) for name, tensor in value.items()}
            else:
                moved[field.name] = None if value is None else move(value)
        return Batch(**moved)


class Pairs(Protocol):
    """Pairs by number, with their pictures."""

    def __len__(self) -> int: ...

    def decoded(self, index: int) -> tuple[Pair, Image.Image, Image.Image]:
        """Return a pair and its pictures (RGB), chosen first."""

    def listed(self, index: int) -> Pair | None:
        """Return a pair without decoding its pictures; None where its row is bad and bad rows are left out."""

    @property
    def skips(self) -> bool:
        """Whether bad rows are left out; otherwise they are errors."""


class PairList:
    """Pairs held in memory."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def decoded(self, index: int) -> tuple[Pair, Image.Image, Image.Image]:
        pair = self.pairs[index]
        return pair, pair.chosen.decode(), pair.rejected.decode()

    def listed(self, index: int) -> Pair | None:
        return self.pairs[index]

    @property
    def skips(self) -> bool:
        return False


class PairExamples(Dataset[Example]):
    """`examples[(index, visit)]` of pairs, with all draws of that visit. With a cache no picture is decoded."""

    def __init__(
        self,
        pairs: Pairs,
        family: Family,
        config: ImageConfig,
        seed: int,
        *,
        dual: bool,
        cache: EncodingCache | None = None,
        references: ReferenceErrors | None = None,
        draws: int = 0,
    ) -> None:
        """draws: after how many visits a pair's draws come again; 0 never."""
        self.pairs, self.config, self.seed, self.dual, self.cache = pairs, config, seed, dual, cache
        self.references, self.draws = references, draws
        self.side = config.resolution or family.resolution
        self.latent_shape = family.latent_shape(self.side, self.side)
        self._draw_timestep = family.draw_timestep

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: tuple[int, int | str]) -> Example:
        index, visit = place
        if self.draws and isinstance(visit, int):
            visit %= self.draws
        pair, example = self._at(index, visit)
        return replace(example, reference=self.references.of(pair, visit)) if self.references else example

    def _at(self, index: int, visit: int | str) -> tuple[Pair, Example]:
        if self.cache is None:
            pair, chosen, rejected = self.pairs.decoded(index)
            return pair, self.example(pair, chosen, rejected, visit)
        pair = self._known(index)
        mirrored = self._mirrored(pair, visit)
        first, second = (self.cache.latent(media, mirrored) for media in (pair.chosen, pair.rejected))
        posterior = torch.stack([first.posterior, second.posterior]).float()
        return pair, self._drawn(pair, visit, None, posterior, (first.frame, second.frame))

    def example(self, pair: Pair, chosen: Image.Image, rejected: Image.Image, visit: int | str) -> Example:
        """Return a pair with the draws of its `visit` (a count, or a name for draws outside of training)."""
        seed = self.seed
        across, down = (0.5, 0.5) if self.config.crop == "center" else (
            uniform(seed, pair.id, visit, "crop across"),
            uniform(seed, pair.id, visit, "crop down"),
        )  # fmt: skip
        first, second = (cut(image, self.side, across, down) for image in (chosen, rejected))
        pixels = torch.stack([first.pixels, second.pixels])
        if self._mirrored(pair, visit):
            pixels = pixels.flip(-1)
        return self._drawn(pair, visit, pixels, None, (first.frame, second.frame))

    def _drawn(
        self, pair: Pair, visit: int | str, pixels: Tensor | None, posterior: Tensor | None, frames: tuple[Frame, Frame]
    ) -> Example:
        seed, shape = self.seed, self.latent_shape
        dropped = uniform(seed, pair.id, visit, "caption dropout") < self.config.caption_dropout
        return Example(
            pixels=pixels,
            posterior=posterior,
            frames=frames,
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

    def _mirrored(self, pair: Pair, visit: int | str) -> bool:
        return self.config.flip and uniform(self.seed, pair.id, visit, "flip") < 0.5

    def _captions(self, pair: Pair) -> tuple[str, str]:
        if not self.dual:
            return pair.prompt, pair.prompt
        return pair.prompt_chosen or pair.prompt, pair.prompt_rejected or pair.prompt

    def _known(self, index: int) -> Pair:
        """Return a pair; where bad rows are left out, the next pair that the cache has stands in for one it lacks."""
        assert self.cache is not None
        for shift in range(len(self)):
            pair = self.pairs.listed((index + shift) % len(self))
            if pair is not None and (self.cache.has(pair) or not self.pairs.skips):
                return pair
        raise UserError("No row of the data can be read.")

    # --- what a cache is filled with -------------------------------------------------------------------------------

    @property
    def mirrorings(self) -> tuple[bool, ...]:
        """Whether pictures are trained on as they are, and also mirrored."""
        return (False, True) if self.config.flip else (False,)

    def texts(self, pair: Pair) -> set[str]:
        """Return all captions that training may ask for with a pair."""
        return {*self._captions(pair), *([""] if self.config.caption_dropout else [])}

    def picture(self, index: int, slot: int, mirrored: bool) -> tuple[Tensor, Frame] | None:
        """Return the pixels `(3, H, W)` and the frame of a pair's picture; None where it is unreadable and left out."""
        pair = self.pairs.listed(index)
        if pair is None:
            return None
        media: Media = (pair.chosen, pair.rejected)[slot]
        try:
            square = cut(media.decode(), self.side)
        except UserError as error:
            if self.pairs.skips:
                return None
            raise UserError(f"{error} Or leave such rows out with --data.on_bad_row skip.") from None
        return square.pixels.flip(-1) if mirrored else square.pixels, square.frame

    def unknown(self, index: int, visit: int | str, known: TensorStore) -> tuple[str, Example | None]:
        """Return the key of a pair's draw, with its example where `known` does not have it."""
        listed = self.pairs.listed(index)
        if listed is not None and (key := error_key(listed, visit)) in known:
            return key, None
        pair, example = self._at(index, visit)
        key = error_key(pair, visit)
        return key, None if key in known else example


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


def collate(examples: Sequence[Example], family: Family, cache: EncodingCache | None = None) -> Batch:
    """Return a batch of B pairs with all chosen images first; with a cache, captions come encoded."""
    captions, frames = (
        [getattr(e, name)[side] for side in (0, 1) for e in examples] for name in ("captions", "frames")
    )

    def sides(name: str) -> Tensor | None:
        rows = [getattr(e, name) for e in examples]
        return None if rows[0] is None else torch.cat([torch.stack([row[side] for row in rows]) for side in (0, 1)])

    posterior = sides("posterior")
    vae_noise = sides("vae_noise")
    assert vae_noise is not None
    return Batch(
        pixels=sides("pixels"),
        posterior=None if posterior is None else posterior.transpose(0, 1),
        tokens={} if cache else family.tokenize(captions, frames),
        conditioning=cache.conditioning(captions, frames) if cache else {},
        timestep=torch.stack([e.timestep for e in examples]),
        noise=torch.stack([e.noise for e in examples]),
        vae_noise=vae_noise,
        p_chosen=torch.tensor([e.p_chosen for e in examples]),
        score_gap=torch.tensor([e.score_gap for e in examples]),
        reference=sides("reference"),
    )

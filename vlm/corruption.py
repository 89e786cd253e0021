"""Images made worse on purpose: every draw is a function of (seed, content, visit).

A crop, a reduction and a colour jitter change the picture before the processor sees it. Noise and blanking change the
processor's normalised values, the space that the vision tower knows: nothing is rounded, clipped or wrapped to 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from PIL import Image
from torch import Tensor

from palate.randomness import generator
from vlm.batch import Encoded

Kind = Literal["none", "noise", "crop", "blank", "downscale", "jitter"]
STEPS = 1000


@dataclass(frozen=True)
class Corruption:
    """What is done to images."""

    kind: Kind = "none"
    """none; noise (POVID, BPO), crop (mDPO), blank, downscale or jitter (STIC)."""
    step: NonNegativeInt = 500
    """noise: step of the diffusion schedule, 0 to 999; 500 in POVID, 900 in BPO."""
    least_area: ClosedUnitInterval = 0.01
    """crop: smallest share of the image's area that is kept."""
    most_area: ClosedUnitInterval = 0.2
    """crop: largest share of the image's area that is kept."""
    side: PositiveInt = 20
    """downscale: pixels of the shorter side, before it is scaled up again."""
    brightness: ClosedUnitInterval = 0.5
    """jitter: brightness is multiplied by a factor in 1 -+ this."""
    hue: ClosedUnitInterval = 0.3
    """jitter: hue is turned by up to this share of the colour circle."""

    @property
    def of_pictures(self) -> bool:
        """Whether it happens before the processor."""
        return self.kind in PICTURES

    @property
    def is_random(self) -> bool:
        """Whether it differs from visit to visit."""
        return self.kind in ("noise", "crop", "jitter")


@cache
def signal_share() -> tuple[float, ...]:
    """Return abar_t for t in 0..999: the share of the signal's variance that is left after t + 1 steps.

    betas = S(linspace(-6, 6, 1000)) * (0.5e-2 - 1e-5) + 1e-5. Source: VCD 2311.16922, taken over by POVID 2402.11411
    and BPO 2403.08730.
    """
    betas = torch.linspace(-6, 6, STEPS, dtype=torch.float64).sigmoid() * (0.5e-2 - 1e-5) + 1e-5
    return tuple((1 - betas).cumprod(0).tolist())


def diffused(values: Tensor, noise: Tensor, step: int) -> Tensor:
    """Return sqrt(abar_t) x + sqrt(1 - abar_t) noise at t = step, in the space of `values`."""
    share = signal_share()[step]
    return math.sqrt(share) * values + math.sqrt(1 - share) * noise


def corrupt_pictures(
    images: Sequence[Image.Image], corruption: Corruption, *, seed: int, content: str, visit: int | str
) -> list[Image.Image]:
    """Return the pictures cropped, reduced or jittered, each of its own size; as they are for any other kind.

    content: id of the pair; its images are told apart by their number.
    """
    change = PICTURES.get(corruption.kind)
    if change is None:
        return list(images)
    draw = f"{corruption.kind} image"
    return [
        change(image, corruption, generator(seed, f"{content}/{number}", visit, draw))
        for number, image in enumerate(images)
    ]


def corrupt_values(
    encoded: Encoded, corruption: Corruption, *, seed: int, content: str, visit: int | str, frames: int = 1
) -> Encoded:
    """Return the encoded prompt with its images' normalised values noised or blanked; as it is for any other kind.

    frames: the processor's temporal patch size. Where it repeats a still image (Qwen), each copy gets the same noise.
    """
    if corruption.kind == "blank":
        return _with_values(encoded, lambda values, _: torch.zeros_like(values), "blank")
    if corruption.kind != "noise":
        return encoded

    def noised(values: Tensor, number: int) -> Tensor:
        rng = generator(seed, f"{content}/{number}", visit, "noise image")
        still = values if frames == 1 else values.reshape(len(values), 3, frames, -1)[:, :, :1]
        noise = torch.randn(still.shape, generator=rng)
        noise = noise if frames == 1 else noise.expand(-1, -1, frames, -1).reshape(values.shape)
        return diffused(values.float(), noise, corruption.step).to(values.dtype)

    return _with_values(encoded, noised, f"noise {corruption.step} {seed} {content} {visit}")


def _with_values(encoded: Encoded, change: Callable[[Tensor, int], Tensor], name: str) -> Encoded:
    images = tuple(
        {**pixels, "pixel_values": change(pixels["pixel_values"], number)}
        for number, pixels in enumerate(encoded.images)
    )
    keys = tuple(f"{key} {name} {number}" for number, key in enumerate(encoded.keys))
    return replace(encoded, images=images, keys=keys)


def _crop(image: Image.Image, corruption: Corruption, rng: torch.Generator) -> Image.Image:
    """Return a random part of the image, of a share of its area and an aspect ratio of 3:4 to 4:3, at its old size.

    Source: mDPO 2406.11839, whose code takes torchvision's RandomResizedCrop of 1 to 20 % of the area.
    """
    width, height = image.size
    low, high = corruption.least_area, corruption.most_area
    area = (low + (high - low) * _uniform(rng)) * width * height
    aspect = math.exp((2 * _uniform(rng) - 1) * math.log(4 / 3))
    across, down = (
        min(width, max(1, round(math.sqrt(area * aspect)))),
        min(height, max(1, round(math.sqrt(area / aspect)))),
    )
    left, top = (int(_uniform(rng) * (room + 1)) for room in (width - across, height - down))
    part = image.crop((left, top, left + across, top + down))
    return part.resize(image.size, Image.Resampling.BILINEAR)


def _downscale(image: Image.Image, corruption: Corruption, rng: torch.Generator) -> Image.Image:
    """Return the image reduced to a few pixels and scaled up again. Source: STIC 2405.19716."""
    scale = corruption.side / min(image.size)
    small = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _jitter(image: Image.Image, corruption: Corruption, rng: torch.Generator) -> Image.Image:
    """Return the image brighter or darker, with its hue turned. Source: STIC 2405.19716."""
    from torchvision.transforms.v2 import functional as tv

    brightness = 1 + corruption.brightness * (2 * _uniform(rng) - 1)
    hue = min(0.5, corruption.hue) * (2 * _uniform(rng) - 1)
    return tv.adjust_hue(tv.adjust_brightness(image, brightness), hue)


def _uniform(rng: torch.Generator) -> float:
    return float(torch.rand((), generator=rng))


PICTURES: dict[str, Callable[[Image.Image, Corruption, torch.Generator], Image.Image]] = {
    "crop": _crop,
    "downscale": _downscale,
    "jitter": _jitter,
}

"""How a picture of any size becomes the square (or oblong) that an encoder reads.

Two ways that must agree: from a PIL picture, as the models were trained and published, and from a tensor, through which
gradients pass. The second follows PIL's arithmetic: Pillow resizes in two passes, across and then down, and rounds to
whole levels after each, so this does too, with a rounding whose gradient is that of its input (the straight-through
estimator, 1308.3432). On average the two ways differ by less than a thousandth of a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from palate.errors import UserError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Fit = Literal["crop", "pad", "squash"]
Rounding = Literal["torchvision", "transformers", "timm", "hpsv2"]
_STRIP = 100  # A picture whose resized form holds so many times the pixels that are kept is a strip, not a picture.


class Plan(NamedTuple):
    """Resize to (height, width), then take a window whose upper left corner is (top, left); negative is padding."""

    height: int
    width: int
    top: int
    left: int


@dataclass(frozen=True)
class Geometry:
    """The shape half of a preprocessing. Equal geometries are one computation, shared by the scorers that have it."""

    height: int = 224
    width: int = 224
    fit: Fit = "crop"
    """crop: the shorter side to the target, the rest cut off around the centre; pad: the longer side to the target, the
    rest filled; squash: both sides to the target."""
    rounding: Rounding = "torchvision"
    """Whose rule rounds the other side and the centre. They differ by a pixel on some sizes."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    arithmetic: Literal["pil", "float"] = "pil"
    """pil: whole levels, as Pillow resizes; float: a float tensor is resized, and may overshoot black and white."""
    antialias: bool = True
    """Of float arithmetic only; Pillow always does."""
    fill: int = 0
    """Level of the padding, 0 to 255."""

    def __str__(self) -> str:
        how = self.arithmetic if self.antialias else f"{self.arithmetic} without antialias"
        edge = f" {self.fill}" if self.fit == "pad" else ""
        return f"{self.fit}{edge} {self.height}x{self.width} {self.interpolation} {how}, {self.rounding} rounding"

    def plan(self, height: int, width: int) -> Plan:
        """Return what happens to a picture of a size. UserError for one too narrow to crop anything of use from it."""
        new_height, new_width = self._resized(height, width)
        if new_height * new_width > _STRIP * self.height * self.width:
            raise UserError(
                f"The image is {width} x {height} pixels: cropped to {self.width} x {self.height} nothing of it is left. "
                "Crop it yourself, or leave it out."
            )
        return Plan(new_height, new_width, self._offset(new_height, self.height), self._offset(new_width, self.width))

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return (3, height, width) of an RGB picture: uint8, or float32 of 0 to 1 where the arithmetic is float."""
        import numpy as np
        import torch
        from PIL import Image

        # Copies and conversions are numpy's: torch would start all cores' threads from each of the decoding threads.
        if self.arithmetic == "float":
            unit = np.asarray(picture, dtype=np.float32) / np.float32(255)
            return self._resize_float(torch.from_numpy(unit)[None].permute(0, 3, 1, 2))[0]
        plan = self.plan(picture.height, picture.width)
        filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
        small = picture.resize((plan.width, plan.height), filters[self.interpolation])
        levels = torch.from_numpy(np.array(small)).permute(2, 0, 1)
        kept = _window(levels, plan, self.height, self.width, self.fill)
        return torch.from_numpy(np.ascontiguousarray(kept.numpy()))

    def of_tensor(self, images: Tensor) -> Tensor:
        """Return (B, 3, height, width) float of (B, 3, H, W) from 0 to 1, differentiable, equal to the PIL way."""
        levels = _rounded(images.clamp(0, 1) * 255)
        if self.arithmetic == "float":
            return self._resize_float(levels / 255)
        plan = self.plan(*images.shape[-2:])
        across = _rounded(self._interpolate(levels, (images.shape[-2], plan.width)).clamp(0, 255))
        down = _rounded(self._interpolate(across, (plan.height, plan.width)).clamp(0, 255))
        return _window(down, plan, self.height, self.width, self.fill) / 255

    def _resize_float(self, images: Tensor) -> Tensor:
        plan = self.plan(*images.shape[-2:])
        small = self._interpolate(images, (plan.height, plan.width))
        return _window(small, plan, self.height, self.width, self.fill / 255)

    def _interpolate(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        import torch.nn.functional as F

        if tuple(images.shape[-2:]) == size:
            return images
        return F.interpolate(images, size, mode=self.interpolation, antialias=self.antialias, align_corners=False)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.fit == "squash":
            return self.height, self.width
        if self.fit == "crop" and self.rounding in ("torchvision", "transformers"):
            short, side = min(height, width), min(self.height, self.width)
            return tuple(side if s == short else int(side * s / short) for s in (height, width))  # type: ignore[return-value]
        closest = min if self.fit == "crop" else max
        if self.rounding == "hpsv2":
            scale = self.height / float(closest(height, width))
            sides = (round(height * scale), round(width * scale))
        else:
            ratio = closest(height / self.height, width / self.width)
            sides = (round(height / ratio), round(width / ratio))
        return max(sides[0], 1), max(sides[1], 1)

    def _offset(self, given: int, wanted: int) -> int:
        if given < wanted:
            return -((wanted - given) // 2)
        return (given - wanted) // 2 if self.rounding == "transformers" else round((given - wanted) / 2)


def _window(images: Tensor, plan: Plan, height: int, width: int, fill: float) -> Tensor:
    """Return the (height, width) window of (..., H, W) that a plan names, padded with `fill` where it goes beyond."""
    import torch.nn.functional as F

    above, left = max(-plan.top, 0), max(-plan.left, 0)
    top, start = max(plan.top, 0), max(plan.left, 0)
    kept = images[..., top : top + height, start : start + width]
    missing = (height - above - kept.shape[-2], width - left - kept.shape[-1])
    if not (above or left or any(missing)):
        return kept
    return F.pad(kept, (left, missing[1], above, missing[0]), value=fill)


def _rounded(levels: Tensor) -> Tensor:
    """Return whole levels, halves upwards as Pillow rounds, whose gradient is that of the levels as they were."""
    return levels + ((levels + 0.5).floor() - levels).detach()

"""From a picture to an encoder's input: a geometry, a mean and a deviation, and the version of it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from palate.errors import UserError
from rewards.geometry import Geometry

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_VERSION = 1  # To be raised when the same settings give other numbers: results and caches are then told apart.


@dataclass(frozen=True)
class Preprocess:
    """One model's image preprocessing; it has no state."""

    geometry: Geometry = field(default_factory=Geometry)
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def version(self) -> str:
        """What decides the numbers, as a sentence that results and cache keys carry."""
        from PIL import __version__ as pillow

        mean, std = ("/".join(f"{value:.6g}" for value in channels) for channels in (self.mean, self.std))
        return f"v{_VERSION}, Pillow {pillow}: {self.geometry}, mean {mean}, std {std}"

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return (3, H, W) float32, normalised, of an RGB picture."""
        return self.normalise(self.geometry(picture)[None])[0]

    def of_tensor(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) normalised, of (B, 3, H, W) from 0 to 1; differentiable."""
        return self.normalise(self.geometry.of_tensor(images))

    def normalise(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) float32, normalised, of what the geometry made: uint8, or float from 0 to 1."""
        import torch

        unit = images if images.is_floating_point() else images.to(torch.float32).div(255)
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (unit - mean) / std


def of_open_clip(settings: Mapping[str, Any]) -> Preprocess:
    """Return the evaluation preprocessing that open_clip's own settings describe (`get_model_preprocess_cfg`)."""
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else (size[-2], size[-1])
    mode = settings.get("resize_mode") or "shortest"
    fits = {"shortest": "crop", "longest": "pad", "squash": "squash"}
    if mode not in fits:
        raise UserError(f"open_clip's resize_mode {mode!r} is not known here. Known: {', '.join(fits)}.")
    return Preprocess(
        Geometry(
            height,
            width,
            fits[mode],  # type: ignore[arg-type]
            rounding="torchvision" if mode == "shortest" and height == width else "timm",
            interpolation=_interpolation(settings.get("interpolation") or "bicubic"),
            fill=int(settings.get("fill_color") or 0),
        ),
        _three(settings["mean"]),
        _three(settings["std"]),
    )


def of_transformers(settings: Mapping[str, Any]) -> Preprocess:
    """Return the preprocessing that a preprocessor_config.json of CLIP describes, with Pillow's arithmetic.

    That is how these models were trained; transformers' newer torchvision processors resize slightly differently.
    """
    size, crop = settings.get("size", 224), settings.get("crop_size", 224)
    cropped = settings.get("do_center_crop", True)
    steps = ("do_resize", "do_rescale", "do_normalize")
    if not all(settings.get(step, True) for step in steps):
        raise UserError(f"A preprocessor_config.json that switches off one of {', '.join(steps)} is not read here.")
    size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
    target = {"height": crop, "width": crop} if isinstance(crop, int) else dict(crop)
    if "shortest_edge" in size and cropped and {size["shortest_edge"]} == set(target.values()):
        height, width, fit = target["height"], target["width"], "crop"
    elif {"height", "width"} <= set(size) and (not cropped or size == target):
        height, width, fit = size["height"], size["width"], "squash"
    else:
        raise UserError(
            f"The image processor's size {size} with the crop {target if cropped else 'off'} is not one that is read "
            "here: a shortest edge with a square crop of the same size, or a height and a width."
        )
    resample = {2: "bilinear", 3: "bicubic"}.get(settings.get("resample", 3), str(settings.get("resample")))
    return Preprocess(
        Geometry(height, width, fit, "transformers", _interpolation(resample)),  # type: ignore[arg-type]
        _three(settings.get("image_mean", CLIP_MEAN)),
        _three(settings.get("image_std", CLIP_STD)),
    )


def _interpolation(name: str) -> Any:
    if name not in ("bicubic", "bilinear"):
        raise UserError(f"The interpolation {name!r} is not one that is done here: bicubic, bilinear.")
    return name


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    a, b, c = (float(value) for value in values)
    return a, b, c

"""What people hold an image in -> something to decode later (`Media`), or an upright RGB picture."""

from __future__ import annotations

import sys
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from PIL import Image

from palate.decoding import to_rgb, upright
from palate.errors import UserError
from palate.records import Media

if TYPE_CHECKING:
    import torch

_EXPECTED = "a PIL image, a Media, bytes, a path, an array (H W C) or a tensor (C H W)"
_CHANNELS = (1, 3, 4)


def held(image: object, name: str) -> Media | np.ndarray | Image.Image | None:
    """Return an image as it can be kept: PIL and Media as they are, files as Media, arrays and tensors as (H W C).

    Raises UserError, naming the image, for what is no image at all, and for an array of another shape or type.
    """
    if image is None or isinstance(image, Image.Image | Media):
        return image
    if isinstance(image, bytes | bytearray | memoryview):
        return Media.image(bytes(image))
    if isinstance(image, str | Path):
        return Media.image(image)
    if isinstance(image, np.ndarray):
        return _checked(image, name, "H W C", "an array")
    if is_tensor(image):
        array = _to_numpy(image)
        return _checked(array.transpose(1, 2, 0) if array.ndim == 3 else array, name, "C H W", "a tensor")
    raise UserError(f"{name} must be {_EXPECTED}, not {type(image).__name__}.")


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Return whether a value is a torch tensor, without importing torch for it."""
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def picture(image: Media | np.ndarray | Image.Image, name: str = "This image") -> Image.Image:
    """Return a held image as upright 8-bit RGB; UserError where that cannot be."""
    if isinstance(image, Media):
        return image.decode()
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    return to_rgb(upright(image), name)


def content_id(image: Media | Image.Image) -> str:
    """Return 32 hex digits that are equal for equal content: of a file's bytes, or of a picture's RGB pixels."""
    if isinstance(image, Media):
        return image.id
    total = blake2b(f"RGB {image.size}".encode(), digest_size=16)
    total.update(image.tobytes())
    return total.hexdigest()


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _checked(array: np.ndarray, name: str, order: str, kind: str) -> np.ndarray:
    """Return an array (H, W) or (H, W, C); UserError for another shape or type."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS) or 0 in array.shape:
        given = array.shape if order == "H W C" or array.ndim != 3 else (array.shape[2], *array.shape[:2])
        raise UserError(
            f"{name} is {kind} of shape {tuple(given)}; expected {order} with 1, 3 or 4 channels, or H W. "
            "An array's channels come last, a tensor's first."
        )
    if array.dtype != np.uint8 and array.dtype != np.uint16 and array.dtype.kind != "f":
        raise UserError(f"{name} is {kind} of {array.dtype}; expected uint8, or floats from 0 to 1.")
    return array


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    values: Any = array
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        # A decoder's float may pass its range by a rounding error, not by a different meaning of black and white.
        if not (low >= -1 / 255 and high <= 1 + 1 / 255):
            raise UserError(f"{name} holds values from {low:g} to {high:g}; expected floats from 0 to 1, or uint8.")
        values = np.rint(np.clip(array, 0, 1).astype(np.float32) * 255).astype(np.uint8)
    elif array.dtype == np.uint16:
        values = np.rint(array / 257).astype(np.uint8)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    return to_rgb(Image.fromarray(np.ascontiguousarray(values)), name)

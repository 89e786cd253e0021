"""Features of images on disk: where neither tower nor projector train, each image goes through them once in all runs.

    <folder>/<hash of the weights>/<hash of the image>.<how it was computed>.safetensors

An image is computed alone, so that its features do not depend on what it shared a batch with, and a resumed run finds the
bits that the first one made. LLaVA-1.5-7B takes 4.7 MB an image in bf16.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from palate.errors import UserError
from vlm.loading import Loaded


class FeatureStore:
    """Features `(K, n, width)` by the image's key (`Batch.keys`). Several processes and runs may share a folder."""

    def __init__(self, folder: Path, loaded: Loaded) -> None:
        """loaded: the model as it was loaded, before it trains or is sharded."""
        self.folder = folder / _hash_of_sight(loaded)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The folder of image features {str(folder)!r} cannot be made: {error.strerror}."
            ) from error

    def get(self, key: str, device: torch.device) -> Tensor | None:
        """Return the features of an image on a device; None where they are not there, or cannot be read."""
        try:
            return load_file(self._path(key, device), device=str(device))["features"]
        except (OSError, SafetensorError, KeyError):
            return None

    def put(self, key: str, features: Tensor) -> None:
        """Keep the features of an image; the file appears whole or not at all."""
        path = self._path(key, features.device)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({"features": features.contiguous()}, part)
        os.replace(part, path)

    def _path(self, key: str, device: torch.device) -> Path:
        kind = device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        how = f"{kind}-{str(precision).removeprefix('torch.')}" if precision else kind
        return self.folder / f"{key}.{how}.safetensors"


def _hash_of_sight(loaded: Loaded) -> str:
    """Return a hash of all that turns pixels into features: the weights of tower and projector, and their types."""
    digest = blake2b(str(loaded.model.config.to_json_string()).encode(), digest_size=16)
    for name, tensor in sorted(loaded.model.state_dict().items()):
        if loaded.family.part_of(name) in ("tower", "projector", None):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

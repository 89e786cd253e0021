"""Tensors on disk under keys, read by memory map: what is costly to compute is computed once in all runs.

Layout of a store:

    <fingerprint>/<hash of content>.safetensors    some hundred entries, written whole or not at all
    <fingerprint>/complete-<hash>.json             the data of which every entry is there

Several runs and processes may share a folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = 1
SUFFIX = ".safetensors"


class TensorStore:
    """Entries by key, each a few named tensors; all entries of a store have the same names and shapes."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        """fingerprint: everything that changes the entries, as JSON can hold it."""
        self.fingerprint = {"format": FORMAT, **fingerprint}
        self.folder = folder / _hash(json.dumps(self.fingerprint, sort_keys=True).encode())
        self._places: dict[str, tuple[int, int]] = {}
        self._files: list[Path] = []
        self._open: dict[int, Any] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of an entry, which may be views of the file; raises KeyError where it is not there."""
        number, row = self._places[key]
        if number not in self._open:
            self._open[number] = safe_open(self._files[number], "pt")
        opened = self._open[number]
        return {name: opened.get_slice(name)[row] for name in opened.keys()}  # noqa: SIM118  (no mapping)

    def load(self) -> None:
        """Look up what is on disk, by the files' headers."""
        self._files, self._places, self._open = sorted(self.folder.glob(f"*{SUFFIX}")), {}, {}
        for number, file in enumerate(self._files):
            with safe_open(file, "pt") as opened:
                keys = json.loads(opened.metadata()["keys"])
            self._places.update((key, (number, row)) for row, key in enumerate(keys))

    def verify(self, rank: int = 0, world: int = 1) -> int:
        """Read this process's share of the files, remove those whose content is not what was written, and count them."""
        damaged = 0
        for file in sorted(self.folder.glob(f"*{SUFFIX}"))[rank::world]:
            if not _is_whole(file):
                file.unlink(missing_ok=True)
                damaged += 1
        if damaged:
            for marker in self.folder.glob("complete-*.json"):
                marker.unlink(missing_ok=True)
        return damaged

    def add(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write entries as one file. They can be looked up after the next `load`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = json.dumps(list(entries))
        names = next(iter(entries.values())).keys()
        tensors = {name: torch.stack([row[name].detach().cpu() for row in entries.values()]) for name in names}
        file = self.folder / f"{_digest(keys, tensors)}{SUFFIX}"
        partial = file.with_name(f".{file.stem}.{os.getpid()}.partial")
        save_file(tensors, partial, metadata={"keys": keys})
        os.replace(partial, file)

    def is_complete(self, data: Mapping[str, Any]) -> bool:
        """Return whether every entry of these data is there, as far as `complete` was told."""
        return self._marker(data).is_file()

    def complete(self, data: Mapping[str, Any]) -> None:
        """Note that every entry of these data is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        note = {"fingerprint": self.fingerprint, "data": dict(data)}
        self._marker(data).write_text(json.dumps(note, indent=1), encoding="utf-8")

    def _marker(self, data: Mapping[str, Any]) -> Path:
        return self.folder / f"complete-{_hash(json.dumps(data, sort_keys=True).encode())}.json"


def weights_hash(parts: Iterable[tuple[str, torch.nn.Module]]) -> str:
    """Return a hash of the weights and buffers of named modules: 32 hex characters."""
    total = blake2b(digest_size=16)
    for part, module in parts:
        for name, tensor in sorted(module.state_dict().items()):
            total.update(f"{part}.{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            total.update(_bytes(tensor.cpu()))
    return total.hexdigest()


def key_of(*tensors: Tensor) -> str:
    """Return a key made of tensors' values: 32 hex characters."""
    return _hash(*(_bytes(tensor) for tensor in tensors))


def _is_whole(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as opened:
            keys = opened.metadata()["keys"]
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, KeyError, TypeError):
        return False
    return _digest(keys, tensors) == file.stem


def _digest(keys: str, tensors: Mapping[str, Tensor]) -> str:
    return _hash(keys.encode(), *(_bytes(tensors[name]) for name in sorted(tensors)))


def _bytes(tensor: Tensor) -> Any:
    """Return a view of a tensor's bytes."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def _hash(*parts: Any) -> str:
    total = blake2b(digest_size=16)
    for part in parts:
        total.update(part)
    return total.hexdigest()

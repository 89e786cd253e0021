"""The reference's log-probabilities, computed once and kept on disk, under everything that changes them.

Layout of a cache folder:

    <fingerprint>/<hash of content>.safetensors    scores of some hundred pairs, written whole or not at all
    <fingerprint>/complete-<hash>.json             the data of which every pair is there

A part whose content does not match its name is removed, and its pairs are scored again. Several runs may share a folder.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from palate.errors import UserError
from palate.tensor_store import weights_hash
from vlm.data import Known

FORMAT = 1
SUFFIX = ".safetensors"


@dataclass
class _Place:
    """Where the scores of one name lie: three runs, one after the other."""

    start: int
    lengths: tuple[int, int, int]


class ReferenceCache(Mapping[str, Known]):
    """Scores by name (`vlm.data.name_of`), in memory once `load` was called; `add` writes further ones."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        """fingerprint: everything that changes the scores, as JSON can hold it (see `fingerprint_of`)."""
        text = json.dumps(fingerprint, sort_keys=True)
        self.folder = folder / _hash(text.encode())
        self.fingerprint = dict(fingerprint)
        self._values = torch.zeros(0)
        self._places: dict[str, _Place] = {}

    def __getitem__(self, name: str) -> Known:
        if name not in self._places:
            raise UserError(
                f"The reference cache {self.folder} has no scores of the pair {name}: has its image changed since they "
                f"were computed? Remove {self.folder}/complete-*.json, and what is missing will be computed."
            )
        place = self._places[name]
        chosen, rejected, corrupted = self._values[place.start : place.start + sum(place.lengths)].split(place.lengths)
        return Known((chosen, rejected), corrupted if place.lengths[2] else None)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def load(self) -> int:
        """Read all parts, and return how many were damaged and removed. Call it on every process."""
        values, damaged, at = [], 0, 0
        self._places = {}
        for file in sorted(self.folder.glob(f"*{SUFFIX}")):
            part = _read(file)
            if part is None:
                damaged += 1
                file.unlink(missing_ok=True)  # another process may have been faster
                continue
            names, lengths, scores = part
            for name, row in zip(names, lengths.tolist(), strict=True):
                self._places[name] = _Place(at, tuple(row))
                at += sum(row)
            values.append(scores)
        self._values = torch.cat(values) if values else torch.zeros(0)
        return damaged

    def add(self, scores: Mapping[str, Known]) -> None:
        """Write the scores of further names as one part. They can be looked up after the next `load`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [
            (*known.answers, torch.zeros(0) if known.corrupted is None else known.corrupted)
            for known in scores.values()
        ]
        tensors = {
            "lengths": torch.tensor([[len(run) for run in row] for row in rows], dtype=torch.int64),
            "values": torch.cat([run.detach().float().cpu() for row in rows for run in row]),
        }
        names = json.dumps(list(scores))
        file = self.folder / f"{_digest(names, tensors)}{SUFFIX}"
        partial = file.with_name(f".{file.stem}.{os.getpid()}.partial")
        save_file(tensors, partial, metadata={"names": names})
        os.replace(partial, file)

    def is_complete(self, data: Mapping[str, Any]) -> bool:
        """Return whether every pair of these data is there, as far as `complete` was told."""
        return self._marker(data).is_file()

    def complete(self, data: Mapping[str, Any]) -> None:
        """Note that every pair of these data is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        note = {"fingerprint": self.fingerprint, "data": dict(data)}
        self._marker(data).write_text(json.dumps(note, indent=1), encoding="utf-8")

    def incomplete(self) -> None:
        """Forget what was noted."""
        for marker in self.folder.glob("complete-*.json"):
            marker.unlink(missing_ok=True)

    def _marker(self, data: Mapping[str, Any]) -> Path:
        return self.folder / f"complete-{_hash(json.dumps(data, sort_keys=True).encode())}.json"


def fingerprint_of(model: nn.Module, processor: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes the scores of a reference these scores: hashes of weights and processor, and the settings."""
    return {
        "format": FORMAT,
        "weights": weights_hash([("", model)]),
        "processor": processor_hash(processor),
        **settings,
    }


def processor_hash(processor: Any) -> str:
    """Return a hash of the files that a processor is saved as: tokeniser, chat template, image settings."""
    total = blake2b(digest_size=16)
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            total.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return total.hexdigest()


def _read(file: Path) -> tuple[list[str], Tensor, Tensor] | None:
    """Return the names, lengths (N, 3) and values in a part; None if they are not those that it was written with."""
    try:
        with safe_open(file, "pt") as opened:
            names = opened.metadata()["names"]
            tensors = {name: opened.get_tensor(name) for name in ("lengths", "values")}
    except (SafetensorError, OSError, KeyError, TypeError):
        return None
    return (json.loads(names), *tensors.values()) if _digest(names, tensors) == file.stem else None


def _digest(names: str, tensors: Mapping[str, Tensor]) -> str:
    return _hash(names.encode(), *(tensors[name].numpy().tobytes() for name in ("lengths", "values")))


def _hash(*parts: bytes) -> str:
    total = blake2b(digest_size=16)
    for part in parts:
        total.update(part)
    return total.hexdigest()

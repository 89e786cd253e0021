"""Checkpoint files -> state dicts and hashes, read once, mapped into memory instead of copied."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from palate.errors import UserError

T = TypeVar("T")
_PIECE = 1 << 24  # bytes hashed at once: hashlib frees the interpreter, so pieces of a file are hashed side by side
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_LOADED: WeakValueDictionary[tuple[str, ...], Any] = WeakValueDictionary()


def content_hash(settings: Any, files: Iterable[Path] = ()) -> str:
    """Return 32 hex digits that stand for settings (JSON) and the contents of files, whatever their folder."""
    total = blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
    for path in files:
        status = path.stat()
        total.update(path.suffix.encode() + _file_hash(path, status.st_size, status.st_mtime_ns))
    return total.hexdigest()


@lru_cache(maxsize=256)
def _file_hash(path: Path, size: int, changed: int) -> bytes:
    """Return a hash over the hashes of a file's pieces. size and changed are its identity within this process."""

    def piece(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return blake2b(file.read(_PIECE), digest_size=16).digest()

    with ThreadPoolExecutor(thread_name_prefix="hash") as pool:
        return blake2b(b"".join(pool.map(piece, range(0, size, _PIECE))), digest_size=16).digest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a torch checkpoint, on the CPU, without a wrapper around them.

    Nothing but tensors is unpickled. UserError for a file that is broken, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError):  # torch's format of before 1.6 cannot be mapped
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has errors of its own for a bad file
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"The checkpoint {path} cannot be read: {reason}. Check that the checkpoint is whole."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()) or not found:
        raise UserError(f"The checkpoint {path} holds a {type(found).__name__} that is no table of named tensors.")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return dict(found)


def assign(module: nn.Module, state: Mapping[str, Tensor], label: str) -> None:
    """Put a state dict's tensors into a module, as they are. UserError naming the first keys and shapes that differ."""
    expected = module.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    differing = [n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape]
    if missing or extra or differing:
        said = [
            f"{words} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for words, names in (
                ("it lacks", missing),
                ("it has besides", extra),
                ("other shapes have", sorted(differing)),
            )
            if names
        ]
        raise UserError(f"The weights of {label} do not fit the model: {'; '.join(said)}. Check the architecture.")
    module.load_state_dict(state, assign=True)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, and the tokenizer or processor that reads for it."""

    model: Any
    reader: Any


def shared(key: tuple[str, ...], make: Callable[[], T]) -> T:
    """Return what was made under this key in this process, as long as someone holds it; makes it otherwise."""
    found = _LOADED.get(key)
    if found is None:
        found = _LOADED[key] = make()
    return found

"""CLIP models as they are trained: in float32, with their own preprocessing, and written as the folder they came from."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from safetensors.torch import save_file
from torch import Tensor

from palate.errors import UserError
from palate.hub import split_revision
from rewards.loading import DESCRIPTION, OPEN_CLIP_CONFIG
from rewards.preprocess import Preprocess
from rewards.settings import ModelConfig
from rewards.text import Tokenizer, clip_tokenizer

_RESIZE_MODES = {"crop": "shortest", "pad": "longest", "squash": "squash"}
_TEXTS = ("*.json", "*.txt", "*.model")
_OURS = {DESCRIPTION, "calibration.json", "model.safetensors.index.json"}  # of another's weights, or ours to write


class Trainable(Protocol):
    """A CLIP with what is needed to train it."""

    model: Any
    """An nn.Module in float32 of its own, with a parameter `logit_scale`."""
    preprocess: Preprocess
    tokenizer: Tokenizer

    def images(self, pixels: Tensor) -> Tensor:
        """Return (M, D) of (M, 3, H, W) normalised pixels."""

    def texts(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Return (B, D) of token ids."""

    def save_memory(self) -> None:
        """Recompute activations in the backward pass."""

    def write(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write a folder with these weights that its library opens, and `load_scorer`, whose unit is then logits."""


def load_trainable(config: ModelConfig) -> Trainable:
    """Return the model that `config.path` names, as `load_scorer` would find it. UserError where it is no CLIP."""
    path = config.path
    if not path:
        raise UserError(
            "--model.path is missing: give a folder, a hub name, ARCHITECTURE:WEIGHTS of open_clip, or toy."
        )
    if path in ("toy", "toy:clip"):
        from palate.toy.weights import toy_path

        path = str(toy_path("clip"))
    here = Path(path)
    if here.is_dir() and not (here / OPEN_CLIP_CONFIG).is_file():
        return TransformersTrainable(path, config.fit)
    if not here.is_dir() and "/" in path and not path.startswith(("hf-hub:", "local-dir:")):
        return TransformersTrainable(path, config.fit)
    return OpenClipTrainable(path, config.fit)


class OpenClipTrainable:
    """A model of open_clip, from a folder, the hub, or by architecture and weights."""

    def __init__(self, source: str, fit: Literal["own", "crop", "pad", "squash"] = "own") -> None:
        import open_clip

        from rewards.open_clip import load_towers

        towers = load_towers(source, dtype="float32", device="cpu")
        self.model = copy.deepcopy(towers.model)  # the loaded one is shared with scorers of this process
        self.preprocess, self.tokenizer = towers.preprocess, towers.tokenizer
        if fit != "own":
            geometry = replace(towers.preprocess.geometry, fit=fit, rounding="torchvision" if fit == "crop" else "timm")
            self.preprocess = replace(towers.preprocess, geometry=geometry)
        self._folder = _texts_of(source)
        if self._folder is not None:
            self._settings = json.loads((self._folder / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
        else:
            name, _, tag = source.partition(":")
            self._settings = {"model_cfg": dict(open_clip.get_model_config(name))}
            if (open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu"):
                self._settings["model_cfg"]["quick_gelu"] = True
            self._own: Any = open_clip.get_tokenizer(name)
        chosen = dict(open_clip.get_model_preprocess_cfg(self.model))
        if fit != "own":
            chosen["resize_mode"] = _RESIZE_MODES[fit]
        known = ("mean", "std", "interpolation", "resize_mode", "fill_color")
        self._settings["preprocess_cfg"] = {
            **self._settings.get("preprocess_cfg", {}),
            **{name: chosen[name] for name in known if chosen.get(name) is not None},
        }

    def images(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def texts(self, ids: Tensor, attention: Tensor) -> Tensor:
        return self.model.encode_text(ids)

    def save_memory(self) -> None:
        self.model.set_grad_checkpointing(True)

    def write(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / OPEN_CLIP_CONFIG, self._settings)
        _write_json(folder / DESCRIPTION, {"scorer": "open_clip", "options": {"convention": "logits"}})
        if self._folder is not None:
            _copy_texts(self._folder, folder)
        elif hasattr(self._own, "save_pretrained"):
            self._own.save_pretrained(folder)
        tensors = {name: value.contiguous() for name, value in state.items()}
        save_file(tensors, str(folder / "open_clip_model.safetensors"), metadata={"format": "pt"})


class TransformersTrainable:
    """A CLIPModel of transformers, from a folder or the hub."""

    def __init__(self, source: str, fit: str = "own") -> None:
        from rewards.transformers_clip import load_towers, model_folder

        if fit != "own":
            raise UserError(
                f"--model.fit {fit} is for models of open_clip; transformers' processors know only their own."
            )
        towers = load_towers(source, dtype="float32", device="cpu")
        self.model = copy.deepcopy(towers.model)
        self.preprocess, self.tokenizer = towers.preprocess, towers.tokenizer
        self._folder = model_folder(source)[0]

    def images(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def texts(self, ids: Tensor, attention: Tensor) -> Tensor:
        return self.model.get_text_features(input_ids=ids, attention_mask=attention).pooler_output

    def save_memory(self) -> None:
        self.model.gradient_checkpointing_enable()

    def write(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        self.model.save_pretrained(folder, state_dict=dict(state))
        _write_json(folder / DESCRIPTION, {"scorer": "clip", "options": {"convention": "logits"}})
        _copy_texts(self._folder, folder)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            clip_tokenizer().save_pretrained(folder)


def _texts_of(source: str) -> Path | None:
    """Return the folder of an open_clip model's description and tokenizer; None for an architecture."""
    name = source.removeprefix("local-dir:")
    if Path(name).is_dir():
        return Path(name)
    if not source.startswith("hf-hub:"):
        return None
    from huggingface_hub import snapshot_download

    repository, revision = split_revision(source.removeprefix("hf-hub:"))
    return Path(snapshot_download(repository, revision=revision, allow_patterns=list(_TEXTS)))


def _copy_texts(source: Path, target: Path) -> None:
    """Copy descriptions and tokenizers that the target does not have yet."""
    for file in (file for pattern in _TEXTS for file in source.glob(pattern)):
        if file.name not in _OURS and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

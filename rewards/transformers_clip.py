"""transformers' CLIP models (PickScore is one) as towers, and as scorers of similarity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from palate.errors import UserError
from palate.hub import explain_hub_error, split_revision
from rewards.cache import Cache
from rewards.devices import Dtype, find_device, find_dtype, torch_dtype
from rewards.preprocess import of_transformers
from rewards.similarity import ClipScorer, find_formula
from rewards.text import TransformersTokenizer, clip_tokenizer
from rewards.towers import Embedder, Towers
from rewards.weights import Loaded, content_hash, shared

_PREPROCESSOR = "preprocessor_config.json"
_DESCRIBED = ["*.json", "*.txt", "*.jinja", "*.model"]
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # transformers' own names, whole or in shards


def load(
    source: str | None = None,
    *,
    convention: str = "cosine",
    dtype: Dtype | None = None,
    device: str | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
    name: str | None = None,
) -> ClipScorer:
    """Return a transformers CLIP as a scorer of similarity.

    source: a folder that CLIPModel.save_pretrained wrote, or "owner/name@revision" on the hub.
    The other arguments are those of `rewards.open_clip.load`.
    """
    formula, kept = find_formula(convention), Cache(cache) if cache else None
    towers = load_towers(source, dtype=dtype, device=device)
    return ClipScorer(Embedder(towers, batch_size, kept), name or f"clip:{towers.label}", formula)


def load_towers(source: str | None, *, dtype: str | None = None, device: str | None = None) -> Towers:
    """Return a transformers CLIP's towers, loaded once in a process.

    Tokenizer and preprocessing are the folder's own; a folder without them gets those that all CLIP models share.
    """
    if not source:
        raise UserError("Which model? Give source=FOLDER, as CLIPModel.save_pretrained writes it, or 'owner/name'.")
    folder, label = model_folder(source)
    where = find_device(device)
    arithmetic = find_dtype(dtype, where)
    settings = read_json(folder / "config.json")
    if settings.get("model_type") != "clip":
        raise UserError(f"{source} is a {settings.get('model_type')!r} model of transformers; expected 'clip'.")
    described = sorted(path for end in ("json", "txt") for path in folder.glob(f"*.{end}"))
    weights = content_hash("clip", [*described, *weight_files(folder)])
    key = ("transformers", weights, label, str(where), arithmetic)
    loaded = shared(key, lambda: _load(folder, label, arithmetic, where))
    model = loaded.model
    size = model.config.vision_config.image_size
    stated = folder / _PREPROCESSOR
    return Towers(
        label=label,
        loaded=loaded,
        encode_image=lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        encode_text=lambda tokens: (
            model.get_text_features(input_ids=tokens.ids, attention_mask=tokens.mask).pooler_output
        ),
        preprocess=of_transformers(read_json(stated) if stated.is_file() else {"size": size, "crop_size": size}),
        scale=float(model.logit_scale.double().exp()),
        bias=0.0,
        weights=weights,
        dtype=arithmetic,
        device=where,
    )


def _load(folder: Path, label: str, dtype: Dtype, device: torch.device) -> Loaded:
    from transformers import AutoTokenizer, CLIPModel

    try:
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
        tokenizer = AutoTokenizer.from_pretrained(folder) if has_tokenizer else clip_tokenizer()
    except Exception as error:  # safetensors, pickle and transformers each have their own for a bad file
        raise UserError(f"transformers cannot load {label}: {error}. Check that the folder is whole.") from error
    temperature = model.logit_scale.data.clone().to(device)
    model.to(device=device, dtype=torch_dtype(dtype))
    model.logit_scale.data = temperature  # exp of a rounded one is 1 % off in bfloat16
    return Loaded(model, TransformersTokenizer(tokenizer, model.config.text_config.max_position_embeddings))


def model_folder(source: str) -> tuple[Path, str]:
    """Return the folder of a transformers model, and what to call it; "owner/name@revision" is looked up on the hub."""
    repo, revision = split_revision(source)
    if Path(repo).is_dir():
        return Path(repo), Path(repo).name
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=_DESCRIBED))
        for pattern in _WEIGHTS:  # in the first form that there is: repositories often hold several
            if not list(folder.glob(pattern)):
                snapshot_download(repo, revision=revision, allow_patterns=[pattern])
            if list(folder.glob(pattern)):
                break
    except Exception as error:  # explain_hub_error tells them apart
        raise explain_hub_error(error, "model", source) from error
    return folder, source


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that transformers would read from a folder; UserError if there are none."""
    for pattern in _WEIGHTS:
        if found := sorted(folder.glob(pattern)):
            return found
    raise UserError(f"The folder {folder} holds no weights, such as model.safetensors.")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; UserError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Is the folder a transformers model?") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object.")
    return found

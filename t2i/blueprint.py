"""A family without its weights: the pipeline's configurations are read, and its models made on torch's meta device."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch

from palate.errors import UserError
from palate.hub import explain_hub_error, split_revision
from t2i.families import pipeline_class, with_length
from t2i.families.base import Family

CLASSES = {
    "StableDiffusionPipeline": ("t2i.families.sd", "StableDiffusion"),
    "StableDiffusionXLPipeline": ("t2i.families.sdxl", "StableDiffusionXL"),
    "StableDiffusion3Pipeline": ("t2i.families.sd3", "StableDiffusion3"),
    "FluxPipeline": ("t2i.families.flux", "Flux"),
    "SanaPipeline": ("t2i.families.sana", "Sana"),
}
"""Pipeline class named in model_index.json -> module and class of its family."""
SMALL = ["model_index.json", "*/*config*.json", "*/*tokenizer*", "*/vocab*", "*/merges.txt", "*/spiece.model"]


def blueprint(source: str, max_sequence_length: int = 0) -> Family:
    """Return the family of a pipeline folder or hub id[@revision] whose weights are tensors without data, in fp32.

    Of a hub repository only configurations and tokenizers are fetched. Raises UserError as `load_family` does.
    """
    path, revision = split_revision(source)
    name = pipeline_class(path, revision)
    if name not in CLASSES:
        raise UserError(f"No family for the pipeline class '{name}' of {source}. Known: {', '.join(sorted(CLASSES))}.")
    try:
        folder = Path(path) if Path(path).is_dir() else _small_files(path, revision)
        pipeline = _pipeline(folder, name)
    except (OSError, ValueError) as error:
        raise explain_hub_error(error, "model", source) from error
    module, family = CLASSES[name]
    made: Family = getattr(importlib.import_module(module), family)(pipeline)
    return with_length(made, max_sequence_length)


def _small_files(path: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, allow_patterns=SMALL))


def _pipeline(folder: Path, name: str) -> Any:
    import diffusers

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts: dict[str, Any] = {}
    for part, entry in index.items():
        if isinstance(entry, list):
            parts[part] = None if entry[0] is None else _component(folder / part, *entry)
        elif not part.startswith("_"):
            parts[part] = entry
    return getattr(diffusers, name)(**parts)


def _component(folder: Path, library: str, name: str) -> Any:
    own = library in ("diffusers", "transformers")  # else a module of diffusers, such as the safety checker's
    kind = getattr(importlib.import_module(library if own else f"diffusers.pipelines.{library}"), name)
    if not issubclass(kind, torch.nn.Module):
        return kind.from_pretrained(folder)
    with torch.device("meta"):
        if library == "diffusers":
            return kind.from_config(kind.load_config(folder))
        return kind(kind.config_class.from_pretrained(folder)).eval()

"""Adapters to text-to-image architectures, one file each. `FAMILIES` is the table; `load_family` picks from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.errors import UserError
from palate.hub import explain_hub_error, split_revision

if TYPE_CHECKING:
    from t2i.families.base import Family


def _sd(path: str, revision: str | None) -> Family:
    from t2i.families.sd import StableDiffusion

    return StableDiffusion.load(path, revision)


def _sdxl(path: str, revision: str | None) -> Family:
    from t2i.families.sdxl import StableDiffusionXL

    return StableDiffusionXL.load(path, revision)


def _sd3(path: str, revision: str | None) -> Family:
    from t2i.families.sd3 import StableDiffusion3

    return StableDiffusion3.load(path, revision)


def _flux(path: str, revision: str | None) -> Family:
    from t2i.families.flux import Flux

    return Flux.load(path, revision)


def _sana(path: str, revision: str | None) -> Family:
    from t2i.families.sana import Sana

    return Sana.load(path, revision)


FAMILIES: dict[str, Callable[[str, str | None], Family]] = {
    "StableDiffusionPipeline": _sd,
    "StableDiffusionXLPipeline": _sdxl,
    "StableDiffusion3Pipeline": _sd3,
    "FluxPipeline": _flux,
    "SanaPipeline": _sana,
}
"""Pipeline class named in model_index.json -> loader of (path or hub id, revision)."""


LONGEST_TEXT = 512
"""Most tokens of a long text that the pipelines of SD3 and FLUX.1 draw with."""


def load_family(source: str, max_sequence_length: int = 0) -> Family:
    """Return the family of a diffusers pipeline: a local folder, or a hub id with an optional `@revision`.

    max_sequence_length: tokens of a prompt in its long text encoder; 0 takes the pipeline's own. Raises UserError where
    the pipeline is missing, gated, moved, of an architecture that no family covers, or has no such encoder.
    """
    path, revision = split_revision(source)
    name = pipeline_class(path, revision)
    if name not in FAMILIES:
        raise UserError(f"No family for the pipeline class '{name}' of {source}. Known: {', '.join(sorted(FAMILIES))}.")
    try:
        family = FAMILIES[name](path, revision)
    except (OSError, ValueError) as error:
        raise explain_hub_error(error, "model", source) from error
    return with_length(family, max_sequence_length)


def with_length(family: Family, max_sequence_length: int = 0) -> Family:
    """Return the family with its long text cut or padded to so many tokens (0: its own); UserError where it has none."""
    if not max_sequence_length:
        return family
    if not family.max_sequence_length:
        raise UserError(
            "--model.max_sequence_length is for families with a long text encoder (SD3, FLUX.1, Sana), which "
            f"{family.name} has not."
        )
    if max_sequence_length > LONGEST_TEXT:
        raise UserError(
            f"--model.max_sequence_length {max_sequence_length}: the pipelines draw with at most {LONGEST_TEXT}."
        )
    family.max_sequence_length = max_sequence_length
    return family


def pipeline_class(path: str, revision: str | None) -> str:
    """Return the class named in model_index.json, the one file read; raises UserError where there is no pipeline."""
    return str(_index(path, revision).get("_class_name"))


def left_out(path: str, revision: str | None) -> dict[str, None]:
    """Return the parts that a pipeline was saved without although its class asks for them, such as SD3's T5.

    diffusers' `from_pretrained` must be told of them as keywords. Raises UserError as `pipeline_class` does.
    """
    import diffusers

    index = _index(path, revision)
    optional = getattr(getattr(diffusers, str(index.get("_class_name")), None), "_optional_components", ())
    empty = [name for name, entry in index.items() if isinstance(entry, list) and entry[0] is None]
    return dict.fromkeys(name for name in empty if name not in optional)


def _index(path: str, revision: str | None) -> dict[str, Any]:
    index = Path(path) / "model_index.json"
    if not index.is_file():
        if Path(path).is_dir():
            hint = (
                " It looks like a LoRA adapter: `palate merge` makes a full pipeline."
                if list(Path(path).glob("*lora*.safetensors"))
                else ""
            )
            raise UserError(f"{path} is not a diffusers pipeline: it has no model_index.json.{hint}")
        from huggingface_hub import hf_hub_download

        try:
            index = Path(hf_hub_download(path, "model_index.json", revision=revision))
        except (OSError, ValueError) as error:
            raise explain_hub_error(error, "model", path) from error
    found: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    return found

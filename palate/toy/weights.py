"""Where the miniature models are."""

from __future__ import annotations

from pathlib import Path

from palate.errors import UserError, unknown

ROOT = Path(__file__).parent / "weights"
MODELS = {
    "sd": "a Stable Diffusion pipeline folder",
    "turbo": "an adapter that makes it draw in 1 to 4 steps",
    "flow": "a Stable Diffusion 3 pipeline folder",
    "clip": "an open_clip folder, for 'local-dir:' names",
    "vlm": "a vision-language model in LLaVA's layout",
}


def toy_path(name: str) -> Path:
    """The folder of a miniature model: "sd" and "turbo" for `StableDiffusionPipeline`, "flow" for
    `StableDiffusion3Pipeline`, "clip" for open_clip, "vlm" for `AutoModelForImageTextToText`. All are shipped whole but
    "turbo", which `palate.toy.turbo` puts together.

    Raises UserError for another name, or where the weights were left out of an installation.
    """
    if name not in MODELS:
        raise UserError(unknown("toy model", name, MODELS))
    folder = ROOT / name
    if not folder.is_dir():
        raise UserError(
            f"The toy model {name!r} ({MODELS[name]}) is not at {folder}. "
            f"Train it with `python -m palate.toy.make_models --only {name}`, or install palate again."
        )
    if name == "turbo":
        from palate.toy.turbo import assembled

        return assembled(folder, ROOT / "sd")
    return folder

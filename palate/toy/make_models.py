"""Trains the toy's miniature models from nothing and notes how good they are: `python -m palate.toy.make_models`."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline
from PIL import Image

from palate.toy import make_clip, make_flow, make_sd, make_turbo, make_vlm
from palate.toy.grammar import prompts
from palate.toy.perceive import as_array
from palate.toy.taste import taste
from palate.toy.turbo import STEPS as TURBO_STEPS
from palate.toy.turbo import assembled
from palate.toy.weights import ROOT
from palate.toy.world import render_array, sample_scene

TRAINED: dict[str, Callable[[int, Path], object]] = {
    "sd": lambda seed, folder: make_sd.train_sd(make_sd.Recipe(), seed, str(folder)),
    "turbo": lambda seed, folder: make_turbo.train_turbo(make_turbo.Recipe(), seed, folder, folder.parent / "sd"),
    "flow": lambda seed, folder: make_flow.train_flow(make_flow.Recipe(), seed, folder, folder.parent / "sd"),
    "clip": lambda seed, folder: make_clip.train_clip(make_clip.Recipe(), seed, folder),
    "vlm": lambda seed, folder: make_vlm.train_vlm(make_vlm.Recipe(), seed, folder),
}
"""Model -> its training from nothing into a folder."""
LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch")
STEPS, GUIDANCE = 20, 3.0  # how the quality of the miniature Stable Diffusion is measured


@torch.no_grad()
def sample(
    pipeline: DiffusionPipeline,
    texts: Sequence[str],
    seed: int = 0,
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch_size: int = 64,
    **options: Any,
) -> list[Image.Image]:
    """One image per prompt; image i starts from the i-th noise of the seed, whatever the batch size.

    options: what else the pipeline is told.
    """
    noise = torch.randn(len(texts), 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in range(0, len(texts), batch_size):
        images += pipeline(
            list(texts[start : start + batch_size]),
            latents=noise[start : start + batch_size],
            num_inference_steps=steps,
            guidance_scale=guidance,
            **options,
        ).images
    return images


def sd_quality(folder: Path) -> dict[str, float]:
    """What is noted of the miniature Stable Diffusion."""
    return quality_of(StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32))


def turbo_quality(folder: Path) -> dict[str, float]:
    """The same of the few-step model, without guidance, in its own number of steps."""
    pipeline = StableDiffusionPipeline.from_pretrained(assembled(folder, folder.parent / "sd"), dtype=torch.float32)
    return quality_of(pipeline, steps=TURBO_STEPS, guidance=0.0)


def flow_quality(folder: Path) -> dict[str, float]:
    """The same of the miniature Stable Diffusion 3."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32, **make_flow.NO_T5)
    return quality_of(pipeline, max_sequence_length=make_flow.SEQUENCE_LENGTH)


def quality_of(pipeline: DiffusionPipeline, seed: int = 0, repeats: int = 2, **how: Any) -> dict[str, float]:
    """Mean taste of samples for every held-out prompt, its spread over seeds, the autoencoder's PSNR, and the speed.

    "semantic_right" is the share of samples that answer the prompt almost fully (semantic part of at least .9).
    "images_per_second" is for batches of 64 in fp32 on this machine's threads. how: keywords of `sample`.
    """
    texts = prompts("held_out")
    start = time.perf_counter()
    rounds = [sample(pipeline, texts, seed + index, **how) for index in range(repeats)]
    speed = repeats * len(texts) / (time.perf_counter() - start)
    scores = [[taste(text, image) for text, image in zip(texts, images, strict=True)] for images in rounds]
    parts = {
        part: np.array([[getattr(score, part) for score in row] for row in scores])
        for part in ("semantic", "visual", "total")
    }
    found = {f"{part}_mean": float(values.mean()) for part, values in parts.items()}
    found |= {f"{part}_std": float(values.std()) for part, values in parts.items()}
    found["semantic_right"] = float((parts["semantic"] >= 0.9).mean())
    return found | {"vae_psnr_db": vae_psnr(pipeline, seed), "images_per_second": speed}


@torch.no_grad()
def vae_psnr(pipeline: Any, seed: int = 0, count: int = 256) -> float:
    """Peak signal-to-noise ratio, in dB, of scenes of held-out prompts after the autoencoder."""
    rng = np.random.default_rng([seed, 3])
    scenes = [sample_scene(rng, prompts("held_out")[index % len(prompts("held_out"))]) for index in range(count)]
    images = torch.from_numpy(np.stack([render_array(scene) for scene in scenes])).permute(0, 3, 1, 2) * 2 - 1
    decoded = pipeline.vae.decode(pipeline.vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    return float(-10 * torch.log10(((decoded - images) / 2).square().mean()))


def grid(images: Sequence[Image.Image], columns: int = 8, zoom: int = 4) -> Image.Image:
    """Images of the toy's size in rows, enlarged without smoothing, with white gaps."""
    side = as_array(images[0]).shape[0] * zoom
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + zoom), rows * (side + zoom)), "white")
    for index, image in enumerate(images):
        enlarged = image.resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(enlarged, ((index % columns) * (side + zoom), (index // columns) * (side + zoom)))
    return sheet


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m palate.toy.make_models", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=ROOT, help="folder that gets sd/, turbo/, flow/, clip/, vlm/ and quality.json"
    )
    parser.add_argument("--only", choices=TRAINED, help="train one of the models alone")
    parser.add_argument("--seed", type=int, default=0, help="seed of scenes, initial weights and training noise")
    parser.add_argument("--measure", action="store_true", help="train nothing: measure the models in --out again")
    options = parser.parse_args(arguments)

    notes_file = options.out / "quality.json"
    notes: dict[str, Any] = json.loads(notes_file.read_text()) if notes_file.is_file() else {}
    measured: dict[str, Callable[[Path], dict[str, float]]] = {
        "sd": sd_quality,
        "turbo": turbo_quality,
        "flow": flow_quality,
        "clip": make_clip.retrieval_accuracy,
        "vlm": make_vlm.vlm_quality,
    }
    for name in TRAINED if options.only is None else (options.only,):
        folder = options.out / name
        if not options.measure:
            start = time.perf_counter()
            TRAINED[name](options.seed, folder)
            notes[name] = {
                "seed": options.seed,
                "training_minutes": round((time.perf_counter() - start) / 60, 1),
                "threads": torch.get_num_threads(),
                "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
            }
        quality = measured[name](folder)
        notes.setdefault(name, {})["quality"] = {key: round(value, 4) for key, value in quality.items()}
        notes_file.write_text(json.dumps(notes, indent=2) + "\n")
        print(f"{folder}: {json.dumps(notes[name])}")


if __name__ == "__main__":
    main()

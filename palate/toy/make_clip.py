"""Trains the miniature open_clip model from nothing: pictures against captions, some of them wrong in one word."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from palate.toy.grammar import Split, prompts, wrong_in_one_word
from palate.toy.make_sd import warm_then_cosine
from palate.toy.tokens import LENGTH, make_tokenizer
from palate.toy.world import SIZE, render_array, sample_scene

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Recipe:
    """What the training of the miniature open_clip model spends."""

    scenes: int = 80_000
    steps: int = 8000
    batch: int = 64
    lr: float = 1e-3
    wrong: int = 3  # captions of each picture that are wrong in one word: most of what teaches places and relations


def config(vocabulary: int) -> dict[str, Any]:
    """The contents of open_clip_config.json; the tokenizer's files lie beside it."""
    return {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {
                "image_size": SIZE,
                "patch_size": 4,
                "width": 96,
                "layers": 4,
                "head_width": 24,
                "mlp_ratio": 2.0,
                "no_ln_pre": True,
                "pool_type": "avg",
            },
            "text_cfg": {
                "context_length": LENGTH,
                "vocab_size": vocabulary,
                "width": 96,
                "heads": 4,
                "layers": 2,
                "mlp_ratio": 2.0,
                "hf_tokenizer_name": ".",
            },
        },
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"},
    }


def _examples(
    count: int, split: Split, rng: np.random.Generator, title: str, wrong: int = 1
) -> tuple[Tensor, list[str], list[list[str]]]:
    """(N, 3, 32, 32) uint8 pictures, their captions, and for each so many captions that are wrong in one word."""
    choices = prompts(split)
    images, captions, mistakes = [], [], []
    for _ in tqdm(range(count), desc=title, unit="image"):
        prompt = choices[rng.integers(len(choices))]
        images.append(np.round(render_array(sample_scene(rng, prompt)) * 255).astype(np.uint8))
        captions.append(prompt)
        mistakes.append([wrong_in_one_word(prompt, rng) for _ in range(wrong)])
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), captions, mistakes


def _normal(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.5) / 0.5


def train_clip(recipe: Recipe, seed: int, folder: str | Path) -> nn.Module:
    """Train the model, write an open_clip folder (fp16) for `local-dir:` names, and return the model in fp32."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    settings = config(len(tokenizer))
    (folder / "open_clip_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    rng = np.random.default_rng([seed, 1])
    images, captions, wrong = _examples(recipe.scenes, "train", rng, "scenes", recipe.wrong)
    ids, wrong_ids = (
        torch.tensor(tokenizer(texts, padding="max_length", max_length=LENGTH).input_ids)
        for texts in (captions, list(chain.from_iterable(wrong)))
    )
    wrong_ids = wrong_ids.unflatten(0, (-1, recipe.wrong))
    _, identity = torch.unique(ids, dim=0, return_inverse=True)
    torch.manual_seed(seed)
    model_config = settings["model_cfg"]
    text_config = {key: value for key, value in model_config["text_cfg"].items() if key != "hf_tokenizer_name"}
    model = open_clip.CLIP(model_config["embed_dim"], model_config["vision_cfg"], text_config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_then_cosine(recipe.steps))
    bar = tqdm(range(recipe.steps), desc="clip", unit="step")
    running = 5.0
    for _ in bar:
        rows = torch.randint(len(images), (recipe.batch,))
        seen = model.encode_image(_normal(images[rows]), normalize=True)
        said = model.encode_text(torch.cat([ids[rows], wrong_ids[rows].flatten(0, 1)]), normalize=True)
        said, mistaken = said[: len(rows)], said[len(rows) :].unflatten(0, (-1, recipe.wrong))
        scale = model.logit_scale.exp()
        right = scale * seen @ said.T  # (B, B): every caption
        others = scale * torch.einsum("bd,bwd->bw", seen, mistaken)
        same = identity[rows][:, None] == identity[rows][None, :]  # equal captions of other pictures are no negatives
        right = right.masked_fill(same & ~torch.eye(len(rows), dtype=torch.bool), -1e4)
        target = torch.arange(len(rows))
        loss = (F.cross_entropy(torch.cat([right, others], 1), target) + F.cross_entropy(right.T, target)) / 2
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(50)))
        running += 0.02 * (loss.item() - running)
        bar.set_postfix(loss=f"{running:.3f}", refresh=False)
    model.eval()
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, str(folder / "open_clip_model.safetensors"), metadata={"format": "pt"})
    return model


@torch.no_grad()
def retrieval_accuracy(folder: str | Path, seed: int = 1, count: int = 1000) -> dict[str, float]:
    """How the saved model does on pictures of held-out prompts.

    "wrong_word": share where the caption beats the same caption with one word wrong. "held_out": share where the
    caption is the best of all held-out prompts; other prompts that are true too ("a red circle and a blue square" where
    one is left of the other) compete, so that 1 is out of reach.
    """
    name = f"local-dir:{folder}"
    model, _, _ = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    images, captions, wrong = _examples(count, "held_out", np.random.default_rng([seed, 2]), "held-out scenes")
    seen = model.encode_image(_normal(images), normalize=True)
    said, mistaken = (
        model.encode_text(tokenizer(texts), normalize=True) for texts in (captions, [caption for (caption,) in wrong])
    )
    choices = prompts("held_out")
    nearest = (seen @ model.encode_text(tokenizer(list(choices)), normalize=True).T).argmax(1)
    return {
        "wrong_word": float(((seen * said).sum(1) > (seen * mistaken).sum(1)).float().mean()),
        "held_out": float(np.mean([choices[index] == text for index, text in zip(nearest, captions, strict=True)])),
    }

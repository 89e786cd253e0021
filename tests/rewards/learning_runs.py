"""Tiny models and data for the tests of `rewards.train`, and what is read from their runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from palate.config import load_config
from palate.readers import write_pairs
from palate.records import Media, Pair
from palate.training import loop
from palate.training.journal import read_journal
from rewards.settings import RewardConfig
from rewards.text import clip_tokenizer
from rewards.train import train

QUICK: dict[str, Any] = {
    "train.cpu": True,
    "train.precision": "fp32",
    "train.steps": 4,
    "train.batch_size": 3,
    "optim.lr": 1e-3,
    "checkpoint.every": 2,
    "eval.every": 2,
    "data.held_out": 0.3,
    "log.every": 1,
    "log.trackers": [],
}
"""Settings of a run of about a second."""


def options(settings: Mapping[str, Any]) -> list[str]:
    """Return the command line of a quick run with these settings on top."""
    return [
        word
        for name, v in {**QUICK, **settings}.items()
        for word in (f"--{name}", v if isinstance(v, str) else str(v) if isinstance(v, Path) else json.dumps(v))
    ]


def run(settings: Mapping[str, Any]) -> loop.Outcome:
    """Train in this process."""
    return train(*load_config(RewardConfig, options(settings), "rewards.train"))


def launch(processes: int, settings: Mapping[str, Any]) -> None:
    """Train in so many processes of their own on this machine's CPU."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    words = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", "rewards.train"]
    done = subprocess.run(
        [sys.executable, "-m", *words, *options(settings)],
        cwd=Path(__file__).parents[2],
        env=clean | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def write_data(path: Path, count: int = 24, *, ties: int = 0) -> Path:
    """Write pairs of noise of which the brighter image is chosen, two for each prompt."""
    rng = np.random.default_rng(0)
    pairs = []
    for k in range(count):
        light, dark = (rng.integers(low, low + 120, (20, 26, 3), dtype=np.uint8) for low in (120, 10))
        chosen, rejected = (Media.image(Image.fromarray(array)) for array in (light, dark))
        pairs.append(Pair(f"prompt {k // 2}", chosen, rejected, p_chosen=0.5 if k < ties else 1.0))
    write_pairs(pairs, path)
    return path


def write_rankings(folder: Path, count: int = 8) -> Path:
    """Write rankings of three or four images in ImageReward's format, brighter ones first, two of them tied."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(count):
        names = [f"{k}-{i}.png" for i in range(3 + k % 2)]
        for i, name in enumerate(names):
            Image.fromarray(rng.integers(180 - 50 * i, 240 - 50 * i, (20, 20, 3), dtype=np.uint8)).save(folder / name)
        ranking = [1, 2, 2, 4][: len(names)]
        rows.append({"id": str(k), "prompt": f"prompt {k}", "generations": names, "ranking": ranking})
    (folder / "rankings.json").write_text(json.dumps(rows))
    return folder / "rankings.json"


def write_transformers_clip(folder: Path) -> Path:
    """Write a random CLIPModel in PickScore's layout: config.json, model.safetensors, preprocessor_config.json."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    tokenizer = clip_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 49408, "max_position_embeddings": 16, **ends},
        vision_config={**tower, "image_size": 24, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(5)
    CLIPModel(config).save_pretrained(folder)
    settings = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


class Interrupted(Exception):
    """Stands for a crash in the middle of a run."""


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Crash the run that is started inside, before it takes its optimiser step number `step` (the first is 0)."""
    take = loop._Run._optimize

    def crash(self: loop._Run) -> Any:
        if self.step == step:
            raise Interrupted
        return take(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_optimize", crash)
        with pytest.raises(Interrupted):
            yield


def weights(model: Path) -> dict[str, Tensor]:
    """Return the weights in a saved model folder."""
    found = [path for path in sorted(model.glob("*.safetensors")) if path.name != "log_sigma.safetensors"]
    assert len(found) == 1
    return load_file(found[0])


def rows(out: Path, kind: str) -> list[dict[str, Any]]:
    """Return the journal's rows of one kind."""
    return [row for row in read_journal(out / "metrics.jsonl") if row["kind"] == kind]

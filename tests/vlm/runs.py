"""Short runs of `vlm.train` on a tiny LLaVA and pairs about pictures of noise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from palate.config import load_config
from palate.conversations import AnswerPair, Message
from palate.readers import write_answer_pairs
from palate.records import Media
from palate.training import loop
from tests.t2i.runs import REPOSITORY
from tests.tiny_vlm import picture
from vlm.settings import VLMConfig
from vlm.train import train

QUICK: dict[str, Any] = {
    "train.cpu": True,
    "train.precision": "fp32",
    "train.steps": 4,
    "train.batch_size": 2,
    "model.lora.rank": 4,
    "model.lora.alpha": 8,
    "optim.lr": 1e-3,
    "checkpoint.every": 2,
    "eval.every": 0,
    "log.every": 1,
    "log.trackers": [],
}
"""Settings of a run of about a second."""


def noise_pairs(count: int = 12, *, text_only_every: int = 3) -> list[AnswerPair]:
    """Return pairs of answers of several lengths, every third without an image, two images in one, one of two turns."""
    nouns = ["a red circle", "two dogs", "one cat on a table", "a blue square near the window"]
    made = []
    for number in range(count):
        chosen = f"{nouns[number % 4]} {number}"
        rejected = f"{nouns[(number + 1) % 4]} and {nouns[(number + 2) % 4]}"
        images = 0 if text_only_every and number % text_only_every == 2 else 1 + (number == 4)
        before = (Message.user("hello"), Message("assistant", ("hi",))) if number == 7 else ()
        prompt = (*before, Message.user(f"what is in the image {number}?", images))
        shown = tuple(Media.image(picture(number + place, (24, 24 + 6 * (number % 2)))) for place in range(images))
        made.append(AnswerPair(prompt, shown, chosen, rejected, score_gap=1.0 + number))
    return made


def write(path: Path, pairs: Sequence[AnswerPair]) -> Path:
    """Write pairs as canonical parquet and return the file."""
    write_answer_pairs(pairs, path)
    return path


def options(settings: Mapping[str, Any]) -> list[str]:
    """Return the command line of a quick run with these settings on top."""
    merged = {**QUICK, **settings}
    return [word for name, v in merged.items() for word in (f"--{name}", v if isinstance(v, str) else json.dumps(v))]


def config_of(settings: Mapping[str, Any]) -> VLMConfig:
    """Return the configuration of a quick run."""
    return load_config(VLMConfig, options(settings), "vlm.train")[0]


def run_in_process(settings: Mapping[str, Any]) -> loop.Outcome:
    """Train in this process."""
    return train(*load_config(VLMConfig, options(settings), "vlm.train"))


def launch(words: Sequence[str | Path], settings: Mapping[str, Any]) -> str:
    """Run `words` with the options of a quick run in processes of their own and return what they printed."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words), *options(settings)],
        cwd=REPOSITORY,
        env=clean | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    return f"{done.stdout}\n{done.stderr}\nexit status {done.returncode}"


def weights(model: Path) -> dict[str, Tensor]:
    """Return the trained weights in a saved folder: the adapter's, or the whole model's."""
    adapter = model / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else model / "model.safetensors")

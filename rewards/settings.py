"""Configuration of training a scorer. The sentence under a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from palate.training.settings import EvalConfig, LoopConfig


@dataclass
class ModelConfig:
    """What is trained."""

    path: str = ""
    """CLIP to start from: a folder of open_clip or transformers, a hub name, ARCHITECTURE:WEIGHTS of open_clip, or toy."""
    image_blocks: NonNegativeInt | None = None
    """Train the last so many blocks of the image tower and what follows them; null trains all of it, 0 nothing."""
    text_blocks: NonNegativeInt | None = None
    """Train the last so many blocks of the text tower and what follows them; null trains all of it, 0 nothing."""
    image_rate: NonNegativeFloat = 1.0
    """Learning rate of the image tower, as a multiple of optim.lr."""
    text_rate: NonNegativeFloat = 1.0
    """Learning rate of the text tower, as a multiple of optim.lr."""
    scale_rate: NonNegativeFloat = 1.0
    """Learning rate of the logit scale, as a multiple of optim.lr; 0 keeps the scale as it is."""
    sigma_rate: NonNegativeFloat = 1.0
    """Learning rate of the head that predicts log sigma (objective gaussian), as a multiple of optim.lr."""
    scale: PositiveFloat | None = None
    """Logit scale to start from; null keeps the model's own. Preferences are often flatter than captions."""
    max_scale: PositiveFloat = 100.0
    """Largest logit scale; the logit of an image is the scale times the cosine."""
    fit: Literal["own", "crop", "pad", "squash"] = "own"
    """How images become square: as the model has it, cropped, padded (HPSv2), or squashed."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


@dataclass
class DataConfig:
    """Which judgements are trained on."""

    path: str = ""
    """Pairs (parquet, `datasets` folder, metadata.jsonl folder, hub id[@revision]), or rankings (HPDv2's or ImageRewardDB's
    JSON or parquet file)."""
    format: str = "auto"
    """Name of a reader of pairs or rankings, or auto to look at the columns."""
    images: str = ""
    """Folder that the image paths of rankings start from; empty looks beside their file."""
    split: str = "train"
    """Split of pairs on the hub or in a `datasets` folder."""
    limit: NonNegativeInt = 0
    """Use only the first so many good rows; 0 uses all."""
    ties: Literal["drop", "soft", "error"] = "soft"
    """Pairs without a winner: leave out, train at p = 1/2, or refuse."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be read ends the run with its number and reason, or is left out and counted."""
    held_out: ClosedUnitInterval = 0.05
    """Share of prompts kept from training to choose the best model by, and to calibrate it."""
    held_out_path: str = ""
    """Judgements to evaluate on, instead of a share of data.path."""
    held_out_split: str = "train"
    """Split of data.held_out_path."""
    held_out_limit: PositiveInt = 2048
    """At most this many held-out pairs or rankings are evaluated."""


@dataclass
class ObjectiveConfig:
    """What is optimised."""

    name: Literal["pickscore", "hpsv2", "hpsv2_listwise", "plackett_luce", "imagereward", "gaussian"] = "pickscore"
    """Loss; docs/reward-models.md describes each."""


def _eval() -> EvalConfig:
    return EvalConfig(keep_best="accuracy")


@dataclass
class RewardConfig(LoopConfig):
    """Training of a scorer on preferences."""

    eval: EvalConfig = field(default_factory=_eval)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

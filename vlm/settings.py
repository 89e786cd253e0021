"""Configuration of vision-language training. The sentence under a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from palate.training.objective import ObjectiveConfig
from palate.training.settings import EvalConfig, LoopConfig, PairDataConfig
from vlm.corruption import Corruption
from vlm.recipes import Fidelity


@dataclass
class PartConfig:
    """How one part of the model trains."""

    tuning: Literal["full", "lora", "frozen"] = "frozen"
    """Train all of its weights, an adapter on its linear layers, or nothing."""
    lr: PositiveFloat | None = None
    """Its peak learning rate; null takes optim.lr."""


@dataclass
class LoraConfig:
    """The adapter."""

    rank: PositiveInt = 128
    """Rank of the adapter."""
    alpha: PositiveFloat = 256.0
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    dropout: ClosedUnitInterval = 0.0
    """Dropout probability on the adapter's input."""
    targets: list[str] = field(default_factory=list)
    """Names of the linear layers that get an adapter; empty takes every linear layer of the parts that train by one."""


@dataclass
class ModelConfig:
    """What is trained."""

    path: str = ""
    """Model in the layout of transformers: a local folder, a hub id with an optional @revision, or toy:NAME."""
    language: PartConfig = field(default_factory=lambda: PartConfig("lora"))
    projector: PartConfig = field(default_factory=lambda: PartConfig("full"))
    tower: PartConfig = field(default_factory=PartConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    quantise: Literal["none", "4bit", "8bit"] = "none"
    """Hold frozen linear layers in 4 or 8 bits (bitsandbytes, extra `quant`); what trains stays in fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    shared_prefix: Literal["auto", "on", "off"] = "auto"
    """Compute image and prompt once for both answers; auto tries it on the first batch and says what it found."""
    features: str = ""
    """Folder that keeps what the frozen tower and projector make of each image, for all runs; empty keeps nothing."""
    head_chunks: PositiveInt = 8
    """Slices of answer tokens that the vocabulary is applied to, one at a time; more take less memory."""


@dataclass
class DataConfig(PairDataConfig):
    """Which pairs of answers are trained on."""

    image_root: str = ""
    """Folder that the names of images start from; empty is the data's own folder."""
    max_length: PositiveInt = 2048
    """Most tokens of prompt, image and one answer; a longer answer loses its end, a prompt never loses any."""


@dataclass
class VLMObjectiveConfig(ObjectiveConfig):
    """What is optimised."""

    recipe: str = "dpo"
    """Preset of terms and corruption (docs/vlm.md): dpo, simpo, povid_stage1, povid_stage2, bpo, mdpo, rlhf_v; or custom."""
    fidelity: Fidelity = "paper"
    """Where a recipe's paper and released code differ: follow the one or the other."""
    mixtures: dict[str, dict[str, float]] = field(default_factory=dict)
    """custom: further slots as weighted sums of others, e.g. {worse: {rejected: 0.5, noisy: 0.5}}."""
    corruption: Corruption = field(default_factory=Corruption)
    """custom: how the images of the slots noisy and corrupted are made worse."""
    changed_weight: NonNegativeFloat = 5.0
    """dense_dpo: weight of the tokens that the other answer of the pair lacks."""


@dataclass
class ReferenceConfig:
    """Where the reference's log-probabilities come from."""

    kind: Literal["online", "cached"] = "online"
    """online: computed beside the policy at every step; cached: computed once, before training, and kept on disk."""
    folder: str = ""
    """cached: folder of the scores, which several runs may share; empty is `reference` in the run's folder."""
    draws: NonNegativeInt = 4
    """cached: draws of a random corruption that are kept for each pair; visits take them in turn."""


@dataclass
class BenchmarksConfig(EvalConfig):
    """Held-out measures during training, and benchmarks that the model answers at every evaluation."""

    pope: str = ""
    """POPE's file of questions to ask, or toy:held_out; empty asks none. Figures go into the journal as eval/pope/..."""
    chair: list[str] = field(default_factory=list)
    """CHAIR's files of truth whose images are to be described (`palate eval chair --truth`), or [toy:held_out]."""
    amber: str = ""
    """AMBER's folder data/, whose images are to be described."""
    image_root: str = ""
    """Folder of the images of all of them; the toy world needs none."""
    questions: PositiveInt = 200
    """Ask the first so many questions of each."""


@dataclass
class VLMConfig(LoopConfig):
    """Preference training of a vision-language model."""

    smaller: ClassVar[str] = "a smaller --data.max_length, or more --model.head_chunks"
    lighter: ClassVar[str] = (
        "--reference.kind cached, --model.language.tuning lora, --model.quantise 4bit, or --optim.name adamw8bit"
    )

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: VLMObjectiveConfig = field(default_factory=VLMObjectiveConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    eval: BenchmarksConfig = field(default_factory=BenchmarksConfig)

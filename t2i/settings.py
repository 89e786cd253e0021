"""Configuration of text-to-image training. The sentence under a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt

from palate.training.objective import ObjectiveConfig
from palate.training.settings import EvalConfig, LoopConfig, PairDataConfig, TrainConfig
from t2i.data import ImageConfig


@dataclass
class ModelConfig:
    """What is trained."""

    path: str = ""
    """Diffusers pipeline: a local folder, or a hub id with an optional @revision."""
    tuning: Literal["full", "lora"] = "full"
    """Train all weights of the denoiser, or a LoRA adapter on it."""
    lora_rank: PositiveInt = 16
    """Rank of the adapter."""
    lora_alpha: float = 16.0
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    lora_dropout: ClosedUnitInterval = 0.0
    """Dropout probability on the adapter's input."""
    lora_targets: list[str] = field(default_factory=list)
    """Names of the modules that get an adapter; empty takes the family's attention projections."""
    max_sequence_length: NonNegativeInt = 0
    """Tokens of a prompt in the long text encoder (T5, Gemma); 0 is what the pipeline samples with: 256 in SD3, 512 in
    FLUX.1, 300 in Sana. Draw with --max-sequence-length of the same."""
    quantise: Literal["none", "int8", "nf4"] = "none"
    """Hold the frozen base under a LoRA in fewer bits: int8, or nf4 (4 bits, on a GPU, extra `quant`)."""
    attention: Literal["auto", "sdpa", "xformers", "flash"] = "auto"
    """Kernel of attention: auto and sdpa are torch's; xformers (not Sana) and flash (FLUX.1 only) need their package."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    split_pair: bool = False
    """Backward through one side of the pairs after the other: half of the activations, one more forward, same gradients."""


@dataclass
class DataConfig(PairDataConfig):
    """Which pairs, ratings or rankings are trained on."""

    kind: Literal["auto", "pairs", "ratings", "rankings"] = "auto"
    """What a row is: two images, one image with a label or score, or K ranked images; auto looks at the columns."""
    desirable_above: float | None = None
    """Ratings that are scores: an image is desirable where its score lies above this. Labels need none."""
    positives: ClosedUnitInterval | None = None
    """Ratings: share of each step that is desirable, drawn from the two groups apart; null takes them as they come."""
    captions: Literal["shared", "dual"] = "shared"
    """shared: both branches see the prompt; dual: each its own caption (prompt_chosen, prompt_rejected), as in DCPO."""
    cache: str = ""
    """Folder of latents and text embeddings, made before the first step, for several runs; empty encodes at every step.
    A stream is then read once."""
    image: ImageConfig = field(default_factory=ImageConfig)


@dataclass
class DenoiserTrainConfig(TrainConfig):
    """Length, batch and numerics of a run."""

    compile: bool = False
    """Compile the denoiser's blocks (torch.compile): some minutes at the start, then faster steps."""


@dataclass
class SampleConfig:
    """Images drawn at every evaluation, always from the same seeds."""

    prompts: list[str] = field(default_factory=list)
    """Prompts to draw; empty takes the first held-out ones."""
    count: NonNegativeInt = 4
    """How many held-out prompts to draw where no prompts are given; 0 draws none."""
    steps: PositiveInt = 25
    """Denoising steps."""
    guidance: float = 7.5
    """Classifier-free guidance scale."""


@dataclass
class DrawsConfig(EvalConfig):
    """Held-out measures during training."""

    draws: PositiveInt = 4
    """Fixed draws (timestep and noise) per held-out pair."""


@dataclass
class ReferenceConfig:
    """Where the reference's errors come from."""

    kind: Literal["online", "cached"] = "online"
    """online: computed beside the policy at every step; cached: computed once, before training, and kept on disk."""
    folder: str = ""
    """cached: folder of the errors, which several runs may share; empty is `reference` in the run's folder."""
    draws: PositiveInt = 8
    """cached: draws of timestep and noise that are kept for each pair; visits take them in turn."""


@dataclass
class ScoreConfig:
    """What stands for a log-likelihood: -1/2 of a mean squared error."""

    kind: Literal["prediction", "x0"] = "prediction"
    """prediction: the error of what the model predicts (noise, v, velocity); x0: of the clean latent over sigma^2 (PSO)."""
    timesteps: list[NonNegativeInt] = field(default_factory=list)
    """Timesteps that pairs are noised to, such as the few of a distilled model, [999,749,499,249]; empty draws from all."""


@dataclass
class T2IConfig(LoopConfig):
    """Preference training of a text-to-image model."""

    smaller: ClassVar[str] = "--model.split_pair true, or a smaller --data.image.resolution"
    lighter: ClassVar[str] = (
        "--model.tuning lora with --model.quantise int8, --data.cache and --reference.kind cached, or --optim.name "
        "adamw8bit; `palate plan` with the same options says what each would save"
    )

    train: DenoiserTrainConfig = field(default_factory=DenoiserTrainConfig)

    eval: DrawsConfig = field(default_factory=DrawsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


@dataclass
class RoundsConfig:
    """Rounds of online training: the model draws, scorers judge, the model is trained on the best against the worst."""

    count: PositiveInt = 3
    """Rounds."""
    prompts: str = ""
    """Prompts to draw: a file (.txt, .jsonl, .csv, .tsv), pairs, or toy:train. Those of rounds.held_out are left out."""
    per_round: NonNegativeInt = 0
    """Prompts of a round, taken in turn in a drawn order; 0 takes all."""
    images: PositiveInt = 4
    """Images for each prompt, of which the best and the worst become a pair; at least 2."""
    batch_size: PositiveInt = 16
    """Images per process and forward when drawing; sample.steps and sample.guidance say how they are drawn."""
    scorers: list[str] = field(default_factory=list)
    """Judges of what is drawn, as NAME or NAME=WEIGHT (docs/scorers.md); the sum of weight times score decides."""
    min_gap: NonNegativeFloat = 0.0
    """Least difference of that sum between best and worst; prompts below it give no pair."""
    temperature: NonNegativeFloat = 0.0
    """p_chosen is sigmoid(gap / temperature); 0 takes each pair as certain."""
    reference: Literal["refresh", "first"] = "refresh"
    """refresh: a round starts from, and is held to, the model that drew it; first: it starts from, and is held to, the
    first model again, and trains on the pairs of all rounds so far."""
    held_out: str = ""
    """Prompts on which each round is compared with the first model at equal seeds; empty compares nothing."""
    held_out_limit: NonNegativeInt = 0
    """Compare on the first so many of them; 0 takes all."""
    judges: list[str] = field(default_factory=list)
    """Scorers of that comparison; empty takes rounds.scorers."""
    tie: NonNegativeFloat = 0.0
    """Largest difference of a judge's score that is a tie."""


@dataclass
class OnlineConfig(T2IConfig):
    """Online preference training: in rounds, on pairs that the model itself draws. data.path is the rounds' own."""

    rounds: RoundsConfig = field(default_factory=RoundsConfig)

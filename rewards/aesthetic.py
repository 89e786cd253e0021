"""LAION's aesthetic predictors: a linear head on the vector of an OpenAI CLIP. They do not read the prompt.

v2 (christophschuhmann/improved-aesthetic-predictor) is published as five layers without activations between them, which
are one linear map; they are multiplied out in float64 when the file is read. v1 (LAION-AI/aesthetic-predictor) is one
layer. Both look at the vector of length 1, and answer on a scale of about 1 to 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from palate.errors import UserError
from palate.hub import explain_hub_error
from rewards.cache import Cache
from rewards.clip_scorers import find_towers, scorer_name
from rewards.devices import Dtype
from rewards.preprocess import Preprocess
from rewards.protocol import ImageLike, ScoreBatch
from rewards.rows import Rows
from rewards.similarity import check_tensor, embed_images
from rewards.stages import Scores, StagedScorer, Work
from rewards.towers import Embedder, ImageVectors, unit
from rewards.weights import content_hash, read_state

CLIP = "ViT-L-14:openai"
# TRL's copy of sac+logos+ava1-l14-linearMSE.pth, which is published on GitHub only.
V2_HUB, V2_FILE, V2_OFFICIAL = (
    "trl-lib/ddpo-aesthetic-predictor",
    "aesthetic-model.pth",
    "sac+logos+ava1-l14-linearMSE.pth",
)
V1_FILE = "sa_0_4_vit_l_14_linear.pth"
V1_PAGE = "https://github.com/LAION-AI/aesthetic-predictor"
_LAYERS = (0, 2, 4, 6, 7)


@dataclass(frozen=True)
class Linear:
    """vector -> weight . vector + bias. weight: (D,) float64."""

    weight: Tensor
    bias: float

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return (N,) of (N, D)."""
        return vectors @ self.weight.to(vectors) + self.bias


class AestheticScorer(StagedScorer):
    """A linear head over an image's vector, as a `Scorer`. Prompts are not looked at, and may be empty."""

    unit = "rating"
    needs_prompt = False

    def __init__(self, embedder: Embedder, head: Linear, name: str, weights: str) -> None:
        self.name, self.weights = name, weights
        self.embedder, self.towers, self._head = embedder, embedder.towers, head
        self.dtype, self.preprocess = self.towers.dtype, self.towers.preprocess.version

    def begin(self, rows: Rows) -> ImageVectors:
        return self.embedder.begin(rows)

    def finish(self, rows: Rows, work: Work) -> ScoreBatch:
        assert isinstance(work, ImageVectors)
        scores = Scores(rows, self.needs_prompt, work.refused)
        if scores.ok.any():
            ratings = self._head(work.vectors().double()).numpy()
            scores.values[scores.ok] = ratings[rows.image_of[scores.ok]]
        return scores.batch(
            scorer=self.name, unit=self.unit, weights=self.weights, preprocess=self.preprocess, dtype=self.dtype
        )

    def score_tensor(self, prompts: Sequence[str], images: Tensor) -> Tensor:
        check_tensor(["-"] * len(prompts), images)
        pixels = self.towers.preprocess.of_tensor(images.to(self.towers.device, torch.float32))
        return self._head(unit(self.towers.encode(pixels)))

    def embed_images(self, images: Sequence[ImageLike]) -> Tensor:
        """Return (N, D) float32 unit vectors on the CPU, one per image; a row of NaN where an image is unreadable."""
        return embed_images(self.embedder, images)


def load_v2(
    source: str | None = None,
    *,
    clip: str = CLIP,
    seed: int | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> AestheticScorer:
    """Return LAION's aesthetic predictor v2.

    source: sac+logos+ava1-l14-linearMSE.pth, or a folder that holds it; None takes a copy from the hub.
    clip: the CLIP under it, as `rewards.clip_scorers.find_towers` takes it; the published head belongs to OpenAI's ViT-L/14.
    seed: random weights of the CLIP; for tests.
    """
    return _load("aesthetic-v2", source, clip, seed, dtype, device, batch_size, cache)


def load_v1(
    source: str | None = None,
    *,
    clip: str = CLIP,
    seed: int | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> AestheticScorer:
    """Return LAION's aesthetic predictor v1; source: sa_0_4_vit_l_14_linear.pth or its folder. Else as `load_v2`."""
    return _load("aesthetic-v1", source, clip, seed, dtype, device, batch_size, cache)


def collapse(layers: Sequence[tuple[Tensor, Tensor]]) -> Linear:
    """Return the one linear map that layers (weight (out, in), bias (out,)) without activations are. The last has out 1."""
    weight, bias = layers[0][0].double(), layers[0][1].double()
    for following, offset in layers[1:]:
        weight, bias = following.double() @ weight, following.double() @ bias + offset.double()
    return Linear(weight[0], float(bias[0]))


def read_layers(state: Mapping[str, Tensor], prefix: str, label: str) -> Linear:
    """Return the map of `{prefix}{0, 2, 4, 6, 7}.weight` and `.bias`; UserError where they do not fit one another."""
    try:
        layers = [(state[f"{prefix}{n}.weight"], state[f"{prefix}{n}.bias"]) for n in _LAYERS]
        if layers[-1][0].shape[0] != 1:
            raise ValueError(f"the last layer has {layers[-1][0].shape[0]} outputs, not 1")
        return collapse(layers)
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(
            f"{label} does not hold the five layers {prefix}0, 2, 4, 6, 7 with weights and biases: {error}."
        ) from None


def _load(
    version: str,
    source: str | None,
    clip: str,
    seed: int | None,
    dtype: Dtype | None,
    device: str | None,
    batch_size: int,
    cache: str | Path | None,
) -> AestheticScorer:
    file = _head_file(version, source)
    state = read_state(file)
    head = read_layers(state, "layers.", str(file)) if version == "aesthetic-v2" else _one_layer(state, file)
    towers = find_towers(clip, seed=seed, dtype=dtype, device=device)
    # OpenAI's own transform, whichever library the CLIP comes from.
    size = towers.preprocess.geometry.height
    towers = replace(towers, preprocess=Preprocess(replace(Preprocess().geometry, height=size, width=size)))
    with torch.inference_mode():
        width = towers.encode(torch.zeros(1, 3, size, size, device=towers.device)).shape[1]
    if width != len(head.weight):
        raise UserError(
            f"{file} rates vectors of {len(head.weight)} numbers; those of {towers.label} have {width}. The published "
            "heads belong to OpenAI's ViT-L/14."
        )
    name = scorer_name(version, source, V2_OFFICIAL if version == "aesthetic-v2" else V1_FILE)
    weights = content_hash([version, towers.weights], [file])
    return AestheticScorer(Embedder(towers, batch_size, Cache(cache) if cache else None), head, name, weights)


def _one_layer(state: Mapping[str, Tensor], file: Path) -> Linear:
    if set(state) != {"weight", "bias"} or state["weight"].shape[0] != 1:
        raise UserError(f"{file} is no head of version 1: expected weight (1, D) and bias, got {', '.join(state)}.")
    return collapse([(state["weight"], state["bias"])])


def _head_file(version: str, source: str | None) -> Path:
    official = V2_OFFICIAL if version == "aesthetic-v2" else V1_FILE
    if source is not None:
        path = Path(source) / official if Path(source).is_dir() else Path(source)
        if not path.is_file():
            raise UserError(f"There is no file {path}. Give the official {official}, or the folder that holds it.")
        return path
    try:
        if version == "aesthetic-v2":
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(V2_HUB, V2_FILE))
    except Exception as error:  # explain_hub_error tells them apart
        raise explain_hub_error(error, "model", f"{V2_HUB} ({V2_FILE})") from error
    raise UserError(f"{V1_FILE} is on no hub. Download it from {V1_PAGE}, and give source=FILE.")

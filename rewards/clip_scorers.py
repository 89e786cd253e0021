"""The published scorers that are a CLIP and a formula: HPSv2, HPSv2.1, PickScore, CLIPScore."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from palate.errors import UserError
from palate.hub import explain_hub_error
from rewards.cache import Cache
from rewards.devices import Dtype
from rewards.geometry import Geometry
from rewards.preprocess import Preprocess
from rewards.similarity import FORMULAS, ClipScorer, find_formula
from rewards.towers import Embedder, Towers

HPS_HUB = "xswu/HPSv2"
HPS_FILES = {"hpsv2": "HPS_v2_compressed.pt", "hpsv2.1": "HPS_v2.1_compressed.pt"}
PICKSCORE_HUB = "yuvalkirstain/PickScore_v1"
CLIPSCORE_MODEL = "ViT-B-32:openai"


def load_hps(
    version: str,
    source: str | None = None,
    *,
    architecture: str = "ViT-H-14",
    antialias: bool = True,
    seed: int | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> ClipScorer:
    """Return HPSv2 (2306.09341) or HPSv2.1: a CLIP ViT-H/14; the score is the cosine, about .2 to .35.

    Their evaluation prints it times 100. The longest side is resized to the model's and the rest padded black, in
    float arithmetic, because tgxs002/HPSv2 resizes a tensor.

    source: the official file, or a folder that holds it; None takes it from the hub (xswu/HPSv2).
    architecture: of a checkpoint of another size, a name that open_clip knows.
    antialias: False is what torchvision did to tensors before 0.17 (2024), and so what numbers of 2023 were made with.
    seed: random weights instead of a checkpoint; for tests.
    """
    from rewards.open_clip import load_towers

    kept = Cache(cache) if cache else None
    file = None if seed is not None else _hps_file(version, source)
    towers = load_towers(architecture, pretrained=file, seed=seed, dtype=dtype, device=device)
    size = towers.preprocess.geometry.height
    geometry = Geometry(size, size, "pad", "hpsv2", arithmetic="float", antialias=antialias)
    embedder = Embedder(replace(towers, preprocess=Preprocess(geometry)), batch_size, kept)
    return ClipScorer(embedder, scorer_name(version, source, HPS_FILES[version]), FORMULAS["cosine"])


def load_pickscore(
    source: str | None = None,
    *,
    dtype: Dtype | None = None,
    device: str | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> ClipScorer:
    """Return PickScore (2305.01569): a CLIP ViT-H/14; the score is exp(logit_scale) * cosine, about 17 to 24.

    Over the images of one prompt, the softmax of the scores is the probability to be picked. Preprocessing is that of the
    CLIP processor with Pillow, which their README takes from laion/CLIP-ViT-H-14-laion2B-s32B-b79K.

    source: a folder in transformers' layout, or a hub id; None is yuvalkirstain/PickScore_v1.
    """
    from rewards.transformers_clip import load_towers

    kept = Cache(cache) if cache else None
    towers = load_towers(source or PICKSCORE_HUB, dtype=dtype, device=device)
    name = scorer_name("pickscore", source, PICKSCORE_HUB.split("/")[1])
    return ClipScorer(Embedder(towers, batch_size, kept), name, FORMULAS["logits"])


def load_clipscore(
    source: str | None = None,
    *,
    convention: str = "original",
    seed: int | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> ClipScorer:
    """Return CLIPScore (2104.08718) in one of its conventions, named in `rewards.similarity.FORMULAS`.

    source: any CLIP, as `find_towers` takes it; None is OpenAI's ViT-B/32, the model of the paper.
    """
    formula, kept = find_formula(convention), Cache(cache) if cache else None
    towers = find_towers(source or CLIPSCORE_MODEL, seed=seed, dtype=dtype, device=device)
    name = "clipscore" if convention == "original" else f"clipscore-{convention}"
    return ClipScorer(Embedder(towers, batch_size, kept), f"{name}:{towers.label}" if source else name, formula)


def find_towers(source: str, *, seed: int | None = None, dtype: str | None = None, device: str | None = None) -> Towers:
    """Return the towers of any CLIP.

    source: a folder of transformers (config.json) or of open_clip, "clip:owner/name" for transformers on the hub, or what
        `rewards.open_clip.load_towers` takes: "ViT-L-14:openai", "ViT-L-14-quickgelu:FILE", "hf-hub:owner/name".
    """
    from rewards import open_clip, transformers_clip

    if source.startswith("clip:") or (Path(source) / "config.json").is_file():
        return transformers_clip.load_towers(source.removeprefix("clip:"), dtype=dtype, device=device)
    return open_clip.load_towers(source.removeprefix("open_clip:"), seed=seed, dtype=dtype, device=device)


load_hpsv2 = partial(load_hps, "hpsv2")
load_hpsv21 = partial(load_hps, "hpsv2.1")
load_clipscore_cosine = partial(load_clipscore, convention="cosine")
load_clipscore_torchmetrics = partial(load_clipscore, convention="torchmetrics")
load_clipscore_logits = partial(load_clipscore, convention="logits")


def _hps_file(version: str, source: str | None) -> Path:
    wanted = HPS_FILES[version]
    if source is None:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(HPS_HUB, wanted))
        except Exception as error:  # explain_hub_error tells them apart
            raise explain_hub_error(error, "model", f"{HPS_HUB} ({wanted})") from error
    path = Path(source) / wanted if Path(source).is_dir() else Path(source)
    if not path.is_file():
        raise UserError(f"There is no file {path}. Give the official {wanted}, or the folder that holds it.")
    return path


def scorer_name(scorer: str, source: str | None, official: str) -> str:
    """Return what a scorer calls itself: with its source, so that two can be compared, unless that is the official one."""
    if source is None:
        return scorer
    own = Path(source).stem if Path(source).is_file() else Path(source).name
    return scorer if own == Path(official).stem or (Path(source) / official).is_file() else f"{scorer}:{own}"

"""Real pictures (ImageReward's four of an ocean, HPSv2's cat) through decoding, preprocessing and every kind of scorer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rewards import load_scorer, score_together
from rewards.geometry import Geometry
from rewards.preprocess import CLIP_MEAN, CLIP_STD, Preprocess, of_transformers
from tests.rewards.official import ARCHITECTURE

DATA = Path(__file__).parents[3] / "shared" / "data"
OCEAN = "a painting of an ocean with clouds and birds, day time, low depth field effect"
FILES = [DATA / "imagereward" / f"{number}.webp" for number in (1, 2, 3, 4)] + [DATA / "hpsv2" / "demo_image.jpg"]
PROMPTS = [OCEAN] * 4 + ["A cat with two horns on its head"]
pytestmark = pytest.mark.skipif(not all(file.is_file() for file in FILES), reason="the shared pictures are not here")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_processors_agree_on_real_pictures(file) -> None:
    shown = Image.open(file).convert("RGB")
    theirs = open_clip.image_transform(224, is_train=False, mean=CLIP_MEAN, std=CLIP_STD, interpolation="bicubic")
    assert (Preprocess()(shown) - theirs(shown)).abs().max() <= 1e-6
    processor = CLIPImageProcessorPil()
    pixels = torch.as_tensor(np.asarray(processor(shown)["pixel_values"][0]))
    assert (of_transformers(processor.to_dict())(shown) - pixels).abs().max() <= 1e-6


@pytest.mark.parametrize("geometry", [Geometry(), Geometry(fit="pad", rounding="hpsv2", arithmetic="float")], ids=str)
def test_tensors_agree_with_pictures(geometry) -> None:
    preprocess = Preprocess(geometry)
    for file in FILES:
        shown = Image.open(file).convert("RGB")
        pixels = torch.from_numpy(np.array(shown)).permute(2, 0, 1)[None] / 255
        assert (preprocess.of_tensor(pixels)[0] - preprocess(shown)).abs().mean() < 0.002


def test_every_scorer_reads_them(published) -> None:
    """Random weights: what is shown is that each row gets a number, alone as together, from paths as from pictures."""
    clip = f"{ARCHITECTURE}:{published / 'HPS_v2_compressed.pt'}"
    scorers = [
        load_scorer("hpsv2", source=str(published), architecture=ARCHITECTURE, device="cpu"),
        load_scorer(f"pickscore:{published / 'PickScore_v1'}", device="cpu"),
        load_scorer(f"clipscore:{clip}", device="cpu"),
        load_scorer("aesthetic-v2", source=str(published), clip=clip, device="cpu"),
        load_scorer(f"imagereward:{published / 'ImageReward'}", device="cpu"),
        load_scorer(f"vqascore:{published / 'vlm'}", device="cpu"),
    ]
    pictures = [Image.open(file) for file in FILES]
    for scorer, batch in zip(scorers, score_together(scorers, PROMPTS, FILES), strict=True):
        assert batch.ok.all(), batch.failures
        assert np.ptp(batch.values) > 0 or scorer.name.startswith("clipscore")
        assert batch.values == pytest.approx(scorer.score(PROMPTS, pictures).values, rel=1e-3, abs=1e-4)

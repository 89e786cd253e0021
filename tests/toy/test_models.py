"""The shipped miniature models: they load where any model loads, and reach what is noted beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from palate.errors import UserError
from palate.toy import make_clip, make_flow, make_sd
from palate.toy.grammar import prompts
from palate.toy.make_flow import SEQUENCE_LENGTH
from palate.toy.make_models import sample, vae_psnr
from palate.toy.taste import taste
from palate.toy.tokens import LENGTH, make_tokenizer
from palate.toy.weights import ROOT, toy_path
from t2i.sample import load_pipeline


def noted(name: str) -> dict[str, float]:
    quality: dict[str, Any] = json.loads((ROOT / "quality.json").read_text())
    return quality[name]["quality"]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(toy_path("sd"), dtype=torch.float32)


def test_all_toy_models_together_stay_small() -> None:
    assert sum(file.stat().st_size for file in ROOT.rglob("*") if file.is_file()) <= 20e6


def test_no_configuration_names_a_place_of_the_machine_that_trained_it() -> None:
    named = [json.loads(file.read_text()).get("_name_or_path", "") for file in ROOT.rglob("*config.json")]
    assert len(named) >= 8 and not any("/" in name for name in named)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'clip'"):
        toy_path("clp")


def test_every_word_is_one_token() -> None:
    tokenizer = make_tokenizer()
    for prompt in (*prompts("train"), *prompts("held_out")):
        assert len(tokenizer.tokenize(prompt)) == len(prompt.split()) <= LENGTH - 2


@pytest.mark.parametrize(("name", "options"), [("sd", {}), ("flow", {"max_sequence_length": SEQUENCE_LENGTH})])
def test_samples_reach_the_noted_taste(name: str, options: dict[str, int]) -> None:
    """48 samples for held-out prompts: the mean lies within four standard errors of what was noted."""
    pipeline = load_pipeline(str(toy_path(name)), device="cpu")
    texts = prompts("held_out")[::6][:48]
    images = sample(pipeline, texts, seed=0, **options)
    scores = [taste(text, image) for text, image in zip(texts, images, strict=True)]
    for part in ("semantic", "visual", "total"):
        mean = float(np.mean([getattr(score, part) for score in scores]))
        error = noted(name)[f"{part}_std"] / np.sqrt(len(texts))
        print(f"{part}: {mean:.3f}, noted {noted(name)[f'{part}_mean']:.3f}, standard error {error:.3f}")
        assert mean == pytest.approx(noted(name)[f"{part}_mean"], abs=4 * error)


def test_prompts_are_heard(pipeline: StableDiffusionPipeline) -> None:
    """The same samples score clearly less against other prompts than against their own."""
    texts = prompts("train")[::22][:32]
    images = sample(pipeline, texts, seed=1)
    own = np.mean([taste(text, image).semantic for text, image in zip(texts, images, strict=True)])
    other = np.mean([taste(text, image).semantic for text, image in zip(texts[1:], images, strict=False)])
    assert own > other + 0.2


def test_samples_do_not_depend_on_the_batch(pipeline: StableDiffusionPipeline) -> None:
    texts = prompts("held_out")[:3]
    together, apart = sample(pipeline, texts, steps=4), sample(pipeline, texts, steps=4, batch_size=1)
    for one, other in zip(together, apart, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max() <= 2


def test_the_autoencoder_reaches_its_noted_psnr(pipeline: StableDiffusionPipeline) -> None:
    assert vae_psnr(pipeline, count=64) == pytest.approx(noted("sd")["vae_psnr_db"], abs=1.5)


def test_open_clip_reaches_its_noted_accuracy() -> None:
    """300 held-out pictures: a share near .9 has a standard error of .017."""
    found = make_clip.retrieval_accuracy(toy_path("clip"), count=300)
    for name, value in found.items():
        assert value == pytest.approx(noted("clip")[name], abs=0.08)


def test_open_clip_preprocessing_takes_any_image() -> None:
    name = f"local-dir:{toy_path('clip')}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    pixels = preprocess(Image.new("RGBA", (100, 60), "red"))
    assert pixels.shape == (3, 32, 32)
    tokens = open_clip.get_tokenizer(name)(["a red circle"])
    assert tokens.shape == (1, LENGTH)
    with torch.no_grad():
        assert model.encode_image(pixels[None]).shape == model.encode_text(tokens).shape == (1, 64)


def test_training_from_nothing_is_a_function_of_the_seed(tmp_path: Path) -> None:
    """A few steps of the shipped recipe: equal weights for equal seeds, a folder that diffusers loads."""
    recipe = make_sd.Recipe(scenes=24, vae_steps=2, vae_batch=4, unet_steps=2, unet_batch=4)
    first, second, third = (
        make_sd.train_sd(recipe, seed, str(tmp_path / str(index))) for index, seed in enumerate((0, 0, 1))
    )
    for part in ("unet", "vae", "text_encoder"):
        one, same, other = (getattr(made, part).state_dict() for made in (first, second, third))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not all(torch.equal(one[name], other[name]) for name in one)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "0", dtype=torch.float32)
    assert len(sample(loaded, ["a red circle"], steps=2)) == 1


def test_the_miniature_flow_trains(tmp_path: Path) -> None:
    """A few steps of the shipped recipe: equal weights for equal seeds, a folder that diffusers loads."""
    recipe = make_flow.Recipe(scenes=24, steps=2, batch=4)
    first, second, third = (
        make_flow.train_flow(recipe, seed, tmp_path / str(index), toy_path("sd"))
        for index, seed in enumerate((0, 0, 1))
    )
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        one, same, other = (getattr(made, part).state_dict() for made in (first, second, third))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not all(torch.equal(one[name], other[name]) for name in one)
    loaded = load_pipeline(str(tmp_path / "0"), device="cpu")
    assert len(sample(loaded, ["a red circle"], steps=2, max_sequence_length=SEQUENCE_LENGTH)) == 1


def test_the_miniature_clip_trains(tmp_path: Path) -> None:
    make_clip.train_clip(make_clip.Recipe(scenes=32, steps=2, batch=8), 0, tmp_path)
    assert set(make_clip.retrieval_accuracy(tmp_path, count=8)) == {"wrong_word", "held_out"}

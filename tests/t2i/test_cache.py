"""Latents and embeddings of the cache are those that the encoders give, each made once, whatever happens to the files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from palate.errors import UserError
from palate.readers import write_pairs
from palate.records import Media, Pair
from palate.training.objective import Term
from t2i import cache as caching
from t2i.cache import EncodingCache
from t2i.data import Examples, ImageConfig, RecordList
from t2i.families import load_family, with_length
from t2i.families.base import Family
from t2i.families.sd import StableDiffusion
from t2i.families.sd3 import StableDiffusion3
from t2i.listing import Listing
from t2i.method import PreferenceMethod
from t2i.settings import ModelConfig
from tests.t2i.runs import REPOSITORY, denoiser_weights, launch, options, rows, run_in_process, torchrun
from tests.t2i.test_method import loss_of
from tests.t2i.tiny_pipelines import TINY, tiny_sd3
from tests.tiny import PROMPTS, noise_image, noise_pairs, tiny_sd

WILD = ImageConfig(flip=True, caption_dropout=0.5)
KINDS = {"sd": tiny_sd, **TINY}


def uneven_pairs() -> list[Pair]:
    """Four pairs of three pictures of several sizes: the first picture is in all of them."""
    pictures = [Media.image(noise_image(k, size)) for k, size in enumerate([(16, 16), (20, 24), (40, 17)])]
    return [Pair(PROMPTS[k], pictures[0], pictures[1 + k % 2]) for k in range(4)]


def family_of(kind: str, tmp_path: Path) -> Family:
    if not (tmp_path / "model").exists():
        KINDS[kind]().save_pretrained(tmp_path / "model")
    return load_family(str(tmp_path / "model"))


def examples_of(family: Family, pairs: Any, config: ImageConfig = WILD, cache: EncodingCache | None = None):
    return Examples(pairs, family, replace(config, resolution=16), seed=3, dual=False, cache=cache)


def filled(family: Family, folder: Path, pairs: Any, config: ImageConfig = WILD, **how: Any) -> EncodingCache:
    """Return a filled cache, read anew."""
    cache = EncodingCache(folder, family, side=16, precision="fp32")
    method = PreferenceMethod(family, loss_of(Term("dpo")), ModelConfig(), "fp32", cache=cache)
    method.fill(examples_of(family, pairs, config), {"pairs": how.get("name", "these")}, batch_size=3, workers=0)
    return cache


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_those_without_a_cache(kind: str, tmp_path: Path) -> None:
    """Same draws, same errors to 1e-6, on mirrored pictures, dropped captions and three sizes."""
    family = family_of(kind, tmp_path)
    pairs = RecordList(uneven_pairs())
    plain = PreferenceMethod(family, loss_of(Term("dpo")), ModelConfig(), "fp32")
    cache = filled(family, tmp_path / "cache", pairs)
    cached = PreferenceMethod(family, loss_of(Term("dpo")), ModelConfig(), "fp32", cache=cache)
    for visit in range(3):
        found = []
        for method, with_cache in ((plain, None), (cached, cache)):
            examples = examples_of(family, pairs, cache=with_cache)
            batch = method.collate([examples[index, visit] for index in range(4)])
            assert (batch.pixels is None) == (with_cache is not None)
            with torch.no_grad():
                found.append(method.module()(*method._inputs(batch)).policy)
        torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


def test_every_picture_and_caption_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures and their mirrors, four prompts and the empty one; a second run and wider data add what is new."""
    family = StableDiffusion(tiny_sd())
    images, texts = [], []
    encode_image, encode_text = family.encode_image, family.encode_text
    monkeypatch.setattr(family, "encode_image", lambda pixels: images.append(len(pixels)) or encode_image(pixels))
    monkeypatch.setattr(family, "encode_text", lambda t: texts.append(len(t["input_ids"])) or encode_text(t))
    cache = filled(family, tmp_path, RecordList(uneven_pairs()))
    assert (sum(images), sum(texts)) == (6, 5) == (len(cache.latents), len(cache.texts))
    filled(family, tmp_path, RecordList(uneven_pairs()), name="the same under another name")
    assert (sum(images), sum(texts)) == (6, 5)
    wider = [*uneven_pairs(), Pair("a blue circle", Media.image(noise_image(9)), uneven_pairs()[0].chosen)]
    cache = filled(family, tmp_path, RecordList(wider), name="more")
    assert (sum(images), sum(texts)) == (8, 6) == (len(cache.latents), len(cache.texts))


def test_complete_data_are_not_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = StableDiffusion(tiny_sd())
    filled(family, tmp_path, RecordList(noise_pairs(3)))
    monkeypatch.setattr(Media, "decode", lambda _: pytest.fail("read again"))
    monkeypatch.setattr(Listing, "add", lambda *_: pytest.fail("listed again"))
    monkeypatch.setattr(StableDiffusion, "tokenize", lambda *_: pytest.fail("tokenised again"))
    filled(family, tmp_path, RecordList(noise_pairs(3)))


@pytest.mark.parametrize("damage", ["cut", "one bit", "other file"])
def test_damaged_files_are_made_again(damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    family = StableDiffusion(tiny_sd())
    before = filled(family, tmp_path, RecordList(noise_pairs(3)))
    expected = {key: before.latents[key]["posterior"].clone() for key in before.latents._places}
    (file,) = before.latents.folder.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "one bit":
        content[-5] ^= 1
    file.write_bytes({"cut": bytes(content[:-20]), "one bit": bytes(content), "other file": b"not tensors"}[damage])
    after = filled(family, tmp_path, RecordList(noise_pairs(3)))
    assert "1 damaged files of the cache were removed" in capfd.readouterr().out
    for key, posterior in expected.items():
        torch.testing.assert_close(after.latents[key]["posterior"], posterior)


def test_what_changes_the_encodings_changes_the_place(tmp_path: Path) -> None:
    """Other weights of one encoder leave the other's entries where they are; a size or precision moves latents."""
    base = EncodingCache(tmp_path, StableDiffusion(tiny_sd()), side=16, precision="fp32")
    other_vae, other_text = tiny_sd(), tiny_sd()
    with torch.no_grad():
        next(other_vae.vae.parameters())[0] += 1
        next(other_text.text_encoder.parameters())[0] += 1
    vae = EncodingCache(tmp_path, StableDiffusion(other_vae), side=16, precision="fp32")
    text = EncodingCache(tmp_path, StableDiffusion(other_text), side=16, precision="fp32")
    assert vae.latents.folder != base.latents.folder and vae.texts.folder == base.texts.folder
    assert text.latents.folder == base.latents.folder and text.texts.folder != base.texts.folder
    for how in ({"side": 8, "precision": "fp32"}, {"side": 16, "precision": "bf16"}):
        assert EncodingCache(tmp_path, StableDiffusion(tiny_sd()), **how).latents.folder != base.latents.folder
    scaled = tiny_sd()
    scaled.vae.register_to_config(scaling_factor=0.5)
    factor = EncodingCache(tmp_path, StableDiffusion(scaled), side=16, precision="fp32")
    assert factor.latents.folder != base.latents.folder
    long, short = (
        EncodingCache(tmp_path, with_length(StableDiffusion3(tiny_sd3()), length), side=16, precision="fp32")
        for length in (0, 20)
    )
    assert long.latents.folder == short.latents.folder and long.texts.folder != short.texts.folder


def test_a_run_is_the_run_without_a_cache(model: Path, pairs: Path, tmp_path: Path) -> None:
    """Weights, held-out measures and drawn images of four steps, with the cache filled and with it found filled."""
    common = {
        "model.path": str(model),
        "data.path": str(pairs),
        "data.image.flip": True,
        "data.held_out": 0.3,
        "eval.every": 2,
        "sample.count": 1,
        "sample.steps": 1,
    }
    plain = run_in_process({**common, "out": str(tmp_path / "plain")})
    for name in ("filled", "found"):
        run = run_in_process({**common, "out": str(tmp_path / name), "data.cache": str(tmp_path / "cache")})
        ours, theirs = denoiser_weights(run.model), denoiser_weights(plain.model)
        assert_same_training(ours, theirs)
        for row, other in zip(rows(run.out, "eval"), rows(plain.out, "eval"), strict=True):
            assert row["eval/margin"] == pytest.approx(other["eval/margin"], abs=2e-2)
            assert row["eval/chosen_error"] == pytest.approx(other["eval/chosen_error"], rel=1e-5)


def test_a_bad_picture_is_left_out_or_an_error(model: Path, tmp_path: Path) -> None:
    """With `skip` the pairs that are trained on are those of a run without a cache."""
    broken = [*noise_pairs(6)]
    broken[2] = replace(broken[2], chosen=Media.image(broken[2].chosen.content()[:60]))
    write_pairs(broken, tmp_path / "pairs.parquet")
    common = {"model.path": str(model), "data.path": str(tmp_path / "pairs.parquet"), "train.steps": 2}
    cached = {**common, "data.cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"--data\.on_bad_row skip"):
        run_in_process({**cached, "out": str(tmp_path / "refused")})
    plain, known = (
        run_in_process({**settings, "out": str(tmp_path / name), "data.on_bad_row": "skip"})
        for name, settings in (("plain", common), ("cached", cached))
    )
    ours, theirs = denoiser_weights(known.model), denoiser_weights(plain.model)
    assert_same_training(ours, theirs)


def test_what_a_cache_cannot_hold_is_refused(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"model.path": str(model), "data.path": str(pairs), "out": str(tmp_path / "run")}
    cached = {**common, "data.cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match="--data.cache keeps one crop"):
        run_in_process({**cached, "data.image.crop": "random"})
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(UserError, match=r"which has 0\.0 GB. Give --data\.cache a larger disk"):
        run_in_process(cached)


def test_changed_data_are_named(tmp_path: Path) -> None:
    family = StableDiffusion(tiny_sd())
    cache = filled(family, tmp_path, RecordList(noise_pairs(2)))
    other = examples_of(family, RecordList(noise_pairs(4)), cache=cache)
    with pytest.raises(UserError, match=r"has nothing for the image .* Remove .*complete-"):
        other[3, 0]
    with pytest.raises(UserError, match="has nothing for the caption 'a purple star'"):
        cache.conditioning(["a purple star"], [caching.NO_FRAME])


@pytest.mark.launch
def test_a_killed_fill_goes_on_where_it_stopped(model: Path, pairs: Path, tmp_path: Path) -> None:
    """Killed when the second file of latents is written but has no name yet, it encodes 24 - 8 pictures again."""
    settings = {"model.path": str(model), "data.path": str(pairs), "data.cache": str(tmp_path / "cache")}
    script = REPOSITORY / "tests" / "t2i" / "run_cache_killed.py"
    words = [sys.executable, str(script), *options({**settings, "out": str(tmp_path / "killed")})]
    killed = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY)
    assert killed.returncode == -9, killed.stderr
    assert len(keys_in(tmp_path / "cache", "latents")) == 8
    run_in_process({**settings, "out": str(tmp_path / "again")})
    keys = keys_in(tmp_path / "cache", "latents")
    assert len(keys) == len(set(keys)) == 24


@pytest.mark.launch
def test_two_processes_share_the_work(model: Path, pairs: Path, tmp_path: Path) -> None:
    """Two ranks encode each picture and caption once between them, and train as one process with twice the batch does."""
    settings = {"model.path": str(model), "data.path": str(pairs), "train.steps": 2, "checkpoint.every": 0}
    launch(
        [*torchrun(2), "-m", "t2i.train"],
        {**settings, "data.cache": str(tmp_path / "two"), "out": str(tmp_path / "run_two")},
    )
    alone = {**settings, "train.batch_size": 4, "data.cache": str(tmp_path / "one"), "out": str(tmp_path / "run_one")}
    run_in_process(alone)
    for name, count in (("latents", 24), ("texts", len(PROMPTS))):
        two, one = (keys_in(tmp_path / folder, name) for folder in ("two", "one"))
        assert sorted(two) == sorted(one) and len(two) == len(set(two)) == count
    ours, theirs = (denoiser_weights(tmp_path / f"run_{name}" / "model") for name in ("two", "one"))
    assert_same_training(ours, theirs)


def assert_same_training(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Adam turns rounding in the smallest gradients into steps, so single weights may differ; a step is up to 1e-4."""
    for key, weights in theirs.items():
        assert float((ours[key] - weights).abs().mean()) < 2e-6, key


def keys_in(folder: Path, name: str) -> list[str]:
    """Return the keys in all files of a store."""
    found: list[str] = []
    for file in (folder / name).glob("*/*.safetensors"):
        with safe_open(file, "pt") as opened:
            found += json.loads(opened.metadata()["keys"])
    return found

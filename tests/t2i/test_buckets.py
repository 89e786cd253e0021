"""Images keep their shape: which sizes there are, what is cut, what SDXL is told of it, and that no batch holds two."""

from __future__ import annotations

import io
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from palate.errors import UserError
from palate.objectives import Term
from palate.readers import write_pairs
from palate.records import Media, Pair
from t2i.buckets import BucketedExamples, Buckets, by_bucket, read_sizes
from t2i.data import Examples, ImageConfig, RecordList, cut
from t2i.families import load_family
from t2i.families.sdxl import StableDiffusionXL
from t2i.method import PreferenceMethod
from t2i.settings import ModelConfig
from t2i.wholes import of_list
from tests.t2i.runs import assert_same, denoiser_weights, interrupted_at, rows, run_in_process
from tests.t2i.test_cache import assert_same_training
from tests.t2i.test_method import loss_of
from tests.t2i.tiny_pipelines import TINY, tiny_sdxl
from tests.tiny import PROMPTS, noise_image, tiny_sd

KINDS = {"sd": tiny_sd, **TINY}
SHAPES = [(16, 16), (40, 20), (20, 34), (16, 18)]
"""(width, height): square, wide, high, square again."""
SIZES = Buckets(16, 4, 2.0)


def shaped_pairs(count: int = 12) -> list[Pair]:
    """Return pairs of several shapes; the sides of a pair differ a little."""
    pairs = []
    for k in range(count):
        width, height = SHAPES[k % len(SHAPES)]
        sides = [Media.image(noise_image(2 * k + n, (width + n, height))) for n in range(2)]
        pairs.append(Pair(PROMPTS[k % len(PROMPTS)], *sides))
    return pairs


def test_sizes_of_sdxl() -> None:
    """At 1024 and 64 they are among those of the SDXL paper's appendix, and their area is within a tenth of the square's."""
    sizes = Buckets(1024, 64, 2.0).sizes
    of_the_paper = [(704, 1408), (768, 1344), (768, 1280), (832, 1216), (896, 1152), (960, 1088), (1024, 1024)]
    assert sizes == sorted({size for one in of_the_paper for size in (one, one[::-1])})
    assert all(0.9 < prod(size) / 1024**2 <= 1 for size in sizes)
    assert Buckets(1024, 64, 1.0).sizes == [(1024, 1024)]
    assert Buckets(1024, 64, 2.0, longest_edge=1216).sizes == sorted(size for size in sizes if max(size) <= 1216)
    assert SIZES.sizes == [(12, 20), (16, 16), (20, 12)]


def test_a_record_has_the_shape_of_its_images_together() -> None:
    """Wide, high, and a pair of both: ln 2 and -ln 2 average to the square; 1 : 5 takes the longest there is."""
    buckets = Buckets(1024, 64, 2.0)
    assert buckets.nearest([(512, 1024)]) == (704, 1408)
    assert buckets.nearest([(3000, 2000)]) == (1216, 832)
    assert buckets.nearest([(512, 1024), (1024, 512)]) == (1024, 1024)
    assert buckets.nearest([(1000, 5000)]) == (704, 1408)


@pytest.mark.parametrize("given", [{"max_aspect": 0.5}, {"max_aspect": 5.0}, {"step": 2000}])
def test_what_cannot_be_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"max_aspect|smaller step"):
        Buckets(**{"resolution": 1024, "step": 64, "max_aspect": 2.0, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize("across", [0.0, 0.5, 1.0])
def test_a_cut_covers_its_size_and_says_where_it_was(across: float) -> None:
    """40 x 20 into 12 x 20: resized to 24 x 12 and cut at 0, 2 or 4 from the left; nothing is padded or stretched."""
    picture = noise_image(0, (40, 20))
    found = cut(picture, (12, 20), across)
    left = {0.0: 0, 0.5: 2, 1.0: 4}[across]
    assert found.frame == ((20, 40), (0, left), (12, 20))
    resized = tv.pil_to_tensor(picture.resize((24, 12), Image.Resampling.BICUBIC)) / 127.5 - 1
    torch.testing.assert_close(found.pixels, resized[:, :, left : left + 20])


def test_a_header_says_what_decoding_gives(tmp_path: Path) -> None:
    """Upright, for each of the eight orientations of EXIF, and for a PNG; a broken file is named."""
    for orientation in range(1, 9):
        exif, buffer = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        noise_image(0, (24, 10)).save(buffer, "JPEG", exif=exif)
        media = Media.image(buffer.getvalue())
        picture = media.decode()
        assert media.size() == (picture.height, picture.width) == ((24, 10) if orientation > 4 else (10, 24))
    assert Media.image(noise_image(0, (24, 10))).size() == (10, 24)
    with pytest.raises(UserError, match="not an image"):
        Media.image(b"nothing").size()


def test_sizes_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = shaped_pairs(3)
    found = read_sizes(of_list(pairs), tmp_path)
    assert found == {k: [(h, w), (h, w + 1)] for k, (w, h) in enumerate(SHAPES[:3])}
    monkeypatch.setattr(Media, "size", lambda _: pytest.fail("looked again"))
    assert read_sizes(of_list(pairs), tmp_path) == found


def examples_of(family: Any, pairs: list[Pair]) -> BucketedExamples:
    groups = by_bucket(SIZES, [[media.size() for media in pair.outputs] for pair in pairs])
    return BucketedExamples(
        [
            Examples(RecordList([pairs[k] for k in places]), family, ImageConfig(), 0, size=size)
            for size, places in groups.items()
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_takes_every_shape(kind: str, tmp_path: Path) -> None:
    """A batch of each of three shapes gives a finite loss and gradients; latents have the shape of the image."""
    KINDS[kind]().save_pretrained(tmp_path)
    family = load_family(str(tmp_path))
    method = PreferenceMethod(family, loss_of(Term("dpo")), ModelConfig(), "fp32")
    examples = examples_of(family, shaped_pairs(6))
    assert 16 % family.multiple == 0 and len(examples.groups) == 3
    for group in examples.groups:
        batch = method.collate([examples[index, 0] for index in group])
        high, wide = examples.parts[examples.bucket(group[0])].size
        assert batch.pixels.shape[-2:] == (high, wide) and batch.noise.shape[-2:] == (high // 2, wide // 2)
        report = method.step(method.module(), batch, lambda loss, last=True: loss.backward(), at=0)
        assert torch.isfinite(report["loss"])
    gradients = [p.grad for p in method.module().parameters() if p.requires_grad and p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_sdxl_is_told_the_truth() -> None:
    """time_ids are what the pipeline itself makes of original size, crop corner and target size."""
    pipeline = tiny_sdxl()
    family = StableDiffusionXL(pipeline)
    method = PreferenceMethod(family, loss_of(Term("dpo")), ModelConfig(), "fp32")
    examples = examples_of(family, shaped_pairs(8))
    for index in range(8):
        batch = method.collate([examples[index, 0]])
        told = method._inputs(batch).conditioning["time_ids"]
        for row, media in zip(told, examples.record(index).outputs, strict=True):
            picture = media.decode()
            high, wide = batch.pixels.shape[-2:]
            scale = max(high / picture.height, wide / picture.width)
            left, top = ((round(old * scale) - new) / 2 for old, new in ((picture.width, wide), (picture.height, high)))
            corner = (round(top), round(left))
            expected = pipeline._get_add_time_ids(
                (picture.height, picture.width), corner, (high, wide), torch.float32, 24
            )
            assert row.tolist() == expected[0].tolist()


@pytest.fixture
def settings(model: Path, tmp_path: Path) -> dict[str, Any]:
    write_pairs(shaped_pairs(), tmp_path / "pairs.parquet")
    return {
        "model.path": str(model),
        "data.path": str(tmp_path / "pairs.parquet"),
        "data.image.buckets": True,
        "data.image.bucket_step": 4,
        "data.held_out": 0.3,
        "eval.every": 2,
    }


def test_one_shape_a_step_however_it_is_divided(settings: dict[str, Any], tmp_path: Path) -> None:
    """Four pairs at once are four times one; a run that was interrupted is the run."""
    settings["eval.every"] = 0
    ways = [{"train.batch_size": 4}, {"train.batch_size": 1, "train.accumulation": 4}]
    whole, parts = (run_in_process({**settings, **way, "out": str(tmp_path / str(n))}) for n, way in enumerate(ways))
    assert_same_training(denoiser_weights(parts.model), denoiser_weights(whole.model))
    again = {**settings, **ways[0], "out": str(tmp_path / "again")}
    with interrupted_at(3):
        run_in_process(again)
    resumed = run_in_process({**again, "resume": "auto"})
    assert_same(denoiser_weights(resumed.model), denoiser_weights(whole.model))


def test_caches_keep_every_shape(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With latents and reference errors from disk, from a table or a stream, and with mirrors: the run without them."""
    settings |= {"data.image.flip": True, "train.steps": 2, "eval.draws": 2}
    plain = run_in_process({**settings, "out": str(tmp_path / "plain")})
    assert len(rows(plain.out, "eval")) == 2
    cached = {**settings, "data.cache": str(tmp_path / "cache")}
    table = run_in_process({**cached, "reference.kind": "cached", "out": str(tmp_path / "table")})
    stream = {**cached, "reference.kind": "cached", "data.streaming": True, "data.cache": str(tmp_path / "other")}
    streamed = run_in_process({**stream, "out": str(tmp_path / "streamed")})
    assert_same(denoiser_weights(streamed.model), denoiser_weights(table.model))
    assert_same_training(denoiser_weights(table.model), denoiser_weights(plain.model))
    for row, other in zip(rows(table.out, "eval"), rows(plain.out, "eval"), strict=True):
        assert row["eval/chosen_error"] == pytest.approx(other["eval/chosen_error"], rel=1e-5)
    monkeypatch.setattr(Media, "content", lambda _: pytest.fail("an image was read"))
    again = run_in_process({**stream, "out": str(tmp_path / "later")})
    assert_same(denoiser_weights(again.model), denoiser_weights(table.model))


def test_a_bad_picture_is_replaced_within_its_bucket(settings: dict[str, Any], tmp_path: Path) -> None:
    """A header that can be read and a body that cannot: a pair of the same shape stands in; without a header, none does."""
    broken = shaped_pairs()
    for number, length in ((1, -200), (6, 4)):
        broken[number] = replace(broken[number], chosen=Media.image(broken[number].chosen.content()[:length]))
    write_pairs(broken, tmp_path / "pairs.parquet")
    common = {**settings, "data.held_out": 0, "eval.every": 0}
    with pytest.raises(UserError, match=r"--data\.on_bad_row skip"):
        run_in_process({**common, "out": str(tmp_path / "refused")})
    run_in_process({**common, "data.on_bad_row": "skip", "out": str(tmp_path / "run"), "train.steps": 8})


def test_what_does_not_go_with_buckets(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["out"] = str(tmp_path / "run")
    with pytest.raises(UserError, match="buckets needs the sizes of all images.*give --data.cache"):
        run_in_process({**settings, "data.streaming": True})
    with pytest.raises(UserError, match="both choose what a step holds"):
        run_in_process({**settings, "data.positives": 0.5})


def test_settings_of_buckets_are_no_part_of_a_run_without_them() -> None:
    """A checkpoint of a square run is one of the same run, whatever the step would be."""
    assert ImageConfig(bucket_step=8).identity() == ImageConfig().identity()
    assert "buckets" not in ImageConfig().identity()
    assert ImageConfig(buckets=True, bucket_step=8).identity() != ImageConfig(buckets=True).identity()

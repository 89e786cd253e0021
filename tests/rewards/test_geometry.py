"""Preprocessing against the libraries' own processors, and the way of tensors against the way of pictures."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from palate.errors import UserError
from rewards.geometry import Geometry, Plan
from rewards.preprocess import CLIP_MEAN, CLIP_STD, Preprocess, of_open_clip, of_transformers

SIZES = [(224, 224), (512, 512), (640, 480), (333, 517), (97, 61), (61, 97), (225, 224), (1, 1), (3, 2), (700, 31)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Half smooth, half noise: both the filter and the rounding show."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()
    smooth[: height // 2] = rng.integers(0, 256, (height // 2, width, 3), dtype=np.uint8)
    return Image.fromarray(smooth)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_open_clips_own_transform_is_met(mode, interpolation) -> None:
    how = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": interpolation, "resize_mode": mode, "fill_color": 7}
    theirs = open_clip.image_transform(224, is_train=False, **how)
    ours = of_open_clip({"size": 224, **how})
    for size in SIZES:
        shown = picture(*size)
        assert difference(ours(shown), theirs(shown)) <= 1e-6, size


@pytest.mark.parametrize("target", [(224, 160), (96, 224)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_an_oblong_target_is_met_too(mode, target) -> None:
    how = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": mode}
    theirs = open_clip.image_transform(target, is_train=False, **how)
    ours = of_open_clip({"size": target, **how})
    for size in SIZES[:7]:
        shown = picture(*size)
        assert difference(ours(shown), theirs(shown)) <= 1e-6, size


@pytest.mark.parametrize("size", [224, 30])
def test_transformers_own_processor_is_met(size) -> None:
    theirs = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    ours = of_transformers(theirs.to_dict())
    for shape in SIZES:
        shown = picture(*shape)
        expected = torch.as_tensor(np.asarray(theirs(shown)["pixel_values"][0]))
        assert difference(ours(shown), expected) <= 1e-6, shape


@pytest.mark.parametrize("antialias", [True, False])
def test_hpsv2s_own_steps_are_met(antialias) -> None:
    """tgxs002/HPSv2, transform.py: to tensor, longest side to 224 by round(), black padding, normalisation."""
    ours = Preprocess(Geometry(fit="pad", rounding="hpsv2", arithmetic="float", antialias=antialias))
    for size in [s for s in SIZES if s != (224, 224)]:
        shown = picture(*size)
        scale = 224 / float(max(shown.size))
        height, width = (max(round(side * scale), 1) for side in (shown.height, shown.width))
        x = tv.resize(tv.to_tensor(shown), [height, width], InterpolationMode.BICUBIC, antialias=antialias)
        down, right = 224 - height, 224 - width
        x = tv.pad(x, [right // 2, down // 2, right - right // 2, down - down // 2], fill=0)
        assert difference(ours(shown), tv.normalize(x, CLIP_MEAN, CLIP_STD)) <= 1e-6 * max(x.abs().max().item(), 1) * 4


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(),
        Geometry(fit="pad", rounding="timm", fill=128),
        Geometry(fit="squash", interpolation="bilinear"),
        Geometry(96, 128, rounding="transformers"),
        Geometry(fit="pad", rounding="hpsv2", arithmetic="float"),
    ],
    ids=str,
)
def test_tensors_go_the_way_of_pictures(geometry) -> None:
    """Within .002 on average in normalised units is asked; ties of bilinear weights at whole sizes come nearest to it."""
    preprocess = Preprocess(geometry)
    for number, size in enumerate([(512, 512), (301, 200), (64, 48), (224, 300)]):
        shown = picture(*size, seed=number)
        pixels = torch.from_numpy(np.array(shown)).permute(2, 0, 1)[None] / 255
        error = (preprocess.of_tensor(pixels)[0] - preprocess(shown)).abs()
        assert error.mean() < 1e-3


def test_gradients_pass_the_rounding_and_reach_what_is_kept() -> None:
    """Upscaling 2 x 2 to 4 x 4 by bilinear weights that sum to 1: the gradient of the sum is 4 levels' worth a pixel, over
    the deviation; without a straight-through rounding it would be 0. Of a wide image the cropped ends get none."""
    preprocess = Preprocess(Geometry(4, 4, "squash", interpolation="bilinear"), mean=(0, 0, 0), std=(0.5, 0.5, 0.5))
    pixels = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
    preprocess.of_tensor(pixels).sum().backward()
    assert pixels.grad == pytest.approx(torch.full((1, 3, 2, 2), 4 / 0.5), abs=1e-5)
    wide = torch.full((1, 3, 8, 40), 0.5, requires_grad=True)
    Preprocess(Geometry(8, 8)).of_tensor(wide).sum().backward()
    touched = wide.grad.abs().sum((0, 1, 2)) > 0
    assert touched.nonzero().flatten().tolist() == list(range(16, 24))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from(["crop", "pad", "squash"]),
    st.sampled_from(["torchvision", "transformers", "timm", "hpsv2"]),
)
def test_every_size_has_a_plan_that_fits(height, width, fit, rounding) -> None:
    """What is cropped covers the target, what is padded lies within it, and both are centred to half a pixel."""
    geometry = Geometry(20, 20, fit, rounding)
    try:
        plan = geometry.plan(height, width)
    except UserError:
        assert fit == "crop" and max(height, width) / min(height, width) > 99
        return
    for side, start in ((plan.height, plan.top), (plan.width, plan.left)):
        assert side >= 1
        assert side >= 20 if fit == "crop" else side <= 20
        assert abs((side - 20) / 2 - start) <= 0.5
    assert min(plan[:2]) == 20 if fit == "crop" else max(plan[:2]) == 20


def test_plans_by_hand() -> None:
    """100 x 201 to 50: the longer side is int(100.5) = 100; (100 - 50) / 2 = 25. To 51: int(102.51) = 102, and the centre
    51 / 2 = 25.5 rounds to 26 by round() (even) and to 25 by //."""
    assert Geometry(50, 50).plan(100, 201) == Plan(50, 100, 0, 25)
    assert Geometry(51, 51).plan(100, 201) == Plan(51, 102, 0, 26)
    assert Geometry(51, 51, rounding="transformers").plan(100, 201) == Plan(51, 102, 0, 25)
    assert Geometry(50, 50, "pad", "timm").plan(100, 201) == Plan(25, 50, -12, 0)


def test_a_strip_is_refused_by_its_size() -> None:
    with pytest.raises(UserError, match="30000 x 2 pixels: cropped to 224 x 224 nothing of it is left"):
        Geometry()(picture(30000, 2))
    assert Geometry(fit="pad", rounding="timm")(picture(30000, 2)).shape == (3, 224, 224)


def test_the_version_names_all_that_decides() -> None:
    versions = {
        Preprocess(g, mean).version
        for g in (Geometry(), Geometry(fit="pad"), Geometry(rounding="timm"), Geometry(arithmetic="float"))
        for mean in (CLIP_MEAN, (0.5, 0.5, 0.5))
    } | {Preprocess(Geometry(arithmetic="float", antialias=False)).version}
    assert len(versions) == 9


@pytest.mark.parametrize(
    ("read", "given", "message"),
    [
        (of_transformers, {"do_rescale": False}, "switches off one of"),
        (of_transformers, {"size": {"shortest_edge": 224}, "crop_size": 200}, "is not one that is read here"),
        (of_transformers, {"resample": 0}, "interpolation '0' is not one"),
        (
            of_open_clip,
            {"size": 8, "mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "random"},
            "'random' is not one",
        ),
        (of_open_clip, {"size": 8, "mean": CLIP_MEAN, "std": CLIP_STD, "resize_mode": "odd"}, "'odd' is not known"),
    ],
)
def test_settings_that_are_not_done_are_refused(read, given, message) -> None:
    with pytest.raises(UserError, match=message):
        read(given)

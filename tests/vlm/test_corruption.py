"""Corruptions have the published strength, and their draws are a function of what they are for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_vlm import picture, question
from vlm.corruption import Corruption, corrupt_pictures, corrupt_values, diffused, signal_share
from vlm.encoding import Encoder
from vlm.loading import Loaded

PICTURE = picture(3, (60, 40))


def test_the_noise_schedule_is_vcds():
    """betas = S(linspace(-6, 6, 1000)) (0.5e-2 - 1e-5) + 1e-5; abar is the running product of 1 - beta."""
    assert [round(signal_share()[t], 3) for t in (300, 500, 900, 999)] == [0.962, 0.745, 0.133, 0.081]
    first = 1 / (1 + math.exp(6)) * (0.5e-2 - 1e-5) + 1e-5
    assert signal_share()[0] == pytest.approx(1 - first) and len(signal_share()) == 1000


def test_noise_keeps_the_variance_of_normalised_values():
    """Signal and noise of variance 1 stay at variance abar + (1 - abar) = 1, whatever the step; nothing wraps or clips."""
    rng = torch.Generator().manual_seed(0)
    values, noise = torch.randn(200_000, generator=rng), torch.randn(200_000, generator=rng)
    for step in (0, 500, 999):
        worse = diffused(values, noise, step)
        assert worse.std() == pytest.approx(1, abs=0.01)
        share = signal_share()[step]
        assert float((worse * values).mean()) == pytest.approx(math.sqrt(share), abs=0.01)
    assert torch.equal(
        diffused(torch.full((3,), 2.0), torch.zeros(3), 500), torch.full((3,), 2.0) * signal_share()[500] ** 0.5
    )


@pytest.mark.parametrize("name", ["llava", "llava_next", "smolvlm", "qwen2_5_vl"])
def test_noise_of_a_processed_image(name: str, tiny: Callable[..., Loaded]):
    """It is a draw of (seed, content, visit), leaves text and tokens alone, and has a key of its own."""
    encoder = Encoder(tiny(name), max_length=400)
    clean = encoder.encode(question(images=2), [picture(0), picture(1)], ["a", "b"])
    frames = getattr(encoder.processor.image_processor, "temporal_patch_size", 1)
    noise = Corruption("noise", step=500)
    draw = lambda **of: corrupt_values(clean, noise, **{"seed": 0, "content": "x", "visit": 0, "frames": frames, **of})
    worse = draw()
    assert torch.equal(worse.prompt, clean.prompt) and worse.answers is clean.answers
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(worse.images, draw().images))
    for other in (draw(seed=1), draw(content="y"), draw(visit=1), draw(visit="held-out")):
        assert not torch.equal(worse.images[0]["pixel_values"], other.images[0]["pixel_values"])
        assert not set(other.keys) & {*worse.keys, *clean.keys}
    share = signal_share()[500]
    added = torch.cat([
        (b["pixel_values"] - math.sqrt(share) * a["pixel_values"]).flatten() for a, b in zip(clean.images, worse.images)
    ])  # fmt: skip
    assert added.std() == pytest.approx(math.sqrt(1 - share), rel=0.1)
    if frames > 1:  # the copies of a still image stay copies
        values = worse.images[0]["pixel_values"]
        copies = values.reshape(len(values), 3, frames, -1)
        assert torch.equal(copies[:, :, 0], copies[:, :, 1])
    blank = corrupt_values(clean, Corruption("blank"), seed=0, content="x", visit=0)
    assert all(not image["pixel_values"].any() for image in blank.images)
    assert corrupt_values(clean, Corruption("crop"), seed=0, content="x", visit=0) is clean


def test_a_crop_keeps_the_share_of_the_area_that_it_says():
    """On a picture whose pixels hold their own place, the spread of what is left is the size of the crop."""
    across, down = np.meshgrid(np.arange(240), np.arange(160))
    place = Image.fromarray(np.stack([across, down, down * 0], -1).astype(np.uint8))
    shares = []
    for visit in range(60):
        (crop,) = corrupt_pictures([place], Corruption("crop"), seed=0, content="x", visit=visit)
        assert crop.size == place.size
        values = np.asarray(crop).astype(int)
        width, height = (int(values[..., axis].max() - values[..., axis].min()) + 1 for axis in (0, 1))
        shares.append(width * height / (240 * 160))
    assert 0.005 < min(shares) < 0.03 and 0.15 < max(shares) < 0.22


@pytest.mark.parametrize("kind", ["crop", "jitter"])
def test_pictures_change_with_content_and_visit_only(kind):
    draw = lambda **of: corrupt_pictures(
        [PICTURE, PICTURE], Corruption(kind), **{"seed": 0, "content": "x", "visit": 0, **of}
    )
    first, second = draw()
    assert first.tobytes() == draw()[0].tobytes() != PICTURE.tobytes() and first.tobytes() != second.tobytes()
    for other in (draw(seed=1), draw(content="y"), draw(visit=1)):
        assert first.tobytes() != other[0].tobytes()


def test_downscaling_leaves_few_pixels():
    (small,) = corrupt_pictures([PICTURE], Corruption("downscale", side=2), seed=0, content="x", visit=0)
    assert small.size == PICTURE.size
    detail = lambda image: float(np.abs(np.diff(np.asarray(image).astype(float), axis=1)).mean())
    assert detail(small) < detail(PICTURE) / 4
    assert corrupt_pictures([PICTURE], Corruption("noise"), seed=0, content="x", visit=0) == [PICTURE]


def test_jitter_stays_within_its_bounds():
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    levels = {
        corrupt_pictures([grey], Corruption("jitter"), seed=0, content="x", visit=v)[0].getpixel((0, 0))[0]
        for v in range(50)
    }
    assert 50 <= min(levels) < 65 and 135 < max(levels) <= 150

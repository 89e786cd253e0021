"""Whatever people hold an image in: read as the same picture, or refused by name."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from palate.errors import UserError
from palate.records import Media
from rewards import load_scorer
from rewards.pictures import held, picture
from rewards.rows import gather


def shown(image: object) -> np.ndarray:
    """Return the RGB pixels of one image as a scorer would see them."""
    rows = gather(["p"], [image])
    ((_, (found,)),) = rows.decoded(np.asarray, batch_size=1)
    return found


def encoded(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_every_holder_gives_the_same_pixels(rgb, tmp_path) -> None:
    base = Image.fromarray(rgb)
    base.save(tmp_path / "a.png")
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    holders = [
        base,
        encoded(base),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Media.image(base),
        rgb,
        rgb / 255,
        (rgb / 255).astype(np.float16),
        rgb.astype(np.uint16) * 257,
        tensor,
        tensor / 255,
        (tensor / 255).double().requires_grad_(),
    ]
    for holder in holders:
        assert np.array_equal(shown(holder), rgb), type(holder)
    assert np.abs(shown((tensor / 255).bfloat16()).astype(int) - rgb).max() <= 1  # eight bits of mantissa


def test_pixels_in_arrays_and_pictures_are_one_image(rgb) -> None:
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    rows = gather(["p"] * 4, [Image.fromarray(rgb), rgb, tensor, tensor / 255])
    assert rows.image_of.tolist() == [0, 0, 0, 0]


def test_a_batch_in_one_array(rgb) -> None:
    both = np.stack([rgb, 255 - rgb])
    for batch in (both, torch.from_numpy(both).permute(0, 3, 1, 2)):
        rows = gather(["p", "p"], batch)
        ((_, found),) = rows.decoded(np.asarray, batch_size=2)
        assert np.array_equal(np.stack(found), both)


def test_grey_and_transparency_in_arrays() -> None:
    """A clear pixel shows white; half of black on white is 255 - 128 = 127."""
    grey = np.array([[0, 100], [200, 255]], dtype=np.uint8)
    for form in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(shown(form), np.repeat(grey[..., None], 3, -1))
    clear = np.array([[[9, 9, 9, 0], [0, 0, 0, 128], [7, 8, 9, 255]]], dtype=np.uint8)
    assert shown(clear)[0].tolist() == [[255] * 3, [127] * 3, [7, 8, 9]]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 8, 8), dtype=np.uint8), r"shape \(3, 8, 8\); expected H W C.*channels come last"),
        (torch.zeros(8, 8, 3), r"shape \(8, 8, 3\); expected C H W"),
        (np.zeros((8, 8, 2), dtype=np.uint8), "1, 3 or 4 channels"),
        (np.zeros((0, 8, 3), dtype=np.uint8), "expected H W C"),
        (np.zeros((8, 8, 3), dtype=np.int64), "int64; expected uint8, or floats from 0 to 1"),
        (torch.zeros(3, 8, 8, dtype=torch.bool), "bool; expected uint8"),
        (3, "Image 0 must be a PIL image, a Media, bytes, a path, an array .H W C. or a tensor .C H W., not int"),
        (["a.png"], "not list"),
    ],
)
def test_what_is_no_image_is_refused(image, message) -> None:
    with pytest.raises(UserError, match=message):
        gather(["p"], [image])


@pytest.mark.parametrize("value", [-1.0, 2.0, 255.0, float("nan")])
def test_floats_of_another_range_fail_their_row(value) -> None:
    wrong = np.full((4, 4, 3), 0.5)
    wrong[1, 2, 0] = value
    rows = gather(["p", "p"], [wrong, np.full((4, 4, 3), 0.5)])
    assert list(rows.failures) == [0]
    assert "expected floats from 0 to 1" in rows.failures[0]


def test_a_single_image_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(UserError, match=r"four axes.*\(3, 4, 4\).*Put a single image in a list"):
        gather(["p"] * 3, torch.zeros(3, 4, 4))
    with pytest.raises(UserError, match=r"four axes"):
        gather(["p"] * 4, np.zeros((4, 4, 3)))
    for single in ("a.png", b"abc", Image.new("RGB", (2, 2))):
        with pytest.raises(UserError, match=r"Write \[image\]"):
            gather(["p"], single)


MODES = {
    "RGBA": lambda rgb: rgb.convert("RGBA"),
    "L": lambda rgb: rgb.convert("L"),
    "LA": lambda rgb: rgb.convert("LA"),
    "P": lambda rgb: rgb.quantize(8),
    "1": lambda rgb: rgb.convert("1"),
    "CMYK": lambda rgb: rgb.convert("CMYK"),
    "I;16": lambda rgb: Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_read_as_their_rgb(mode, rgb) -> None:
    """Each mode holds a picture whose RGB is known; what it is saved as must not matter."""
    source = MODES[mode](Image.fromarray(rgb))
    if mode in ("LA", "L", "I;16"):
        expected = np.asarray(Image.fromarray(rgb).convert("L").convert("RGB"))
    elif mode == "RGBA":
        expected = rgb
    else:
        expected = np.asarray(source.convert("RGB"))
    assert np.array_equal(shown(source), expected)
    kind = {"CMYK": "TIFF", "I;16": "TIFF"}.get(mode, "PNG")
    assert np.array_equal(shown(encoded(source, kind)), expected)


def test_orientation_is_honoured_and_told_apart(rgb) -> None:
    """Two PIL images of the same stored pixels, of which one says that it lies on its side, are two images."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.open(io.BytesIO(encoded(Image.fromarray(rgb), exif=exif)))
    turned = np.rot90(rgb, k=-1)
    assert np.array_equal(shown(lying), turned)
    assert np.array_equal(shown(encoded(Image.fromarray(rgb), exif=exif)), turned)
    rows = gather(["p"] * 3, [Image.fromarray(rgb), lying, Image.fromarray(np.ascontiguousarray(turned))])
    assert rows.image_of.tolist() == [0, 1, 1]


def test_transparent_pictures_of_equal_colour_are_told_apart(rgb) -> None:
    solid, clear = Image.new("RGBA", (3, 3), (9, 9, 9, 255)), Image.new("RGBA", (3, 3), (9, 9, 9, 0))
    assert gather(["p"] * 2, [solid, clear]).image_of.tolist() == [0, 1]


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(shown(data), np.asarray(frames[0]))


def test_torn_and_huge_pictures_fail_their_row(rgb, monkeypatch, tmp_path) -> None:
    large = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / "torn.png"
    path.write_bytes(encoded(large)[:3000])
    lazy = Image.open(path)  # read only when it is used
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    rows = gather(["p"] * 4, [path, lazy, encoded(large), rgb])
    list(rows.decoded(np.asarray, batch_size=4))
    assert sorted(rows.failures) == [0, 1, 2]
    assert "torn.png" in rows.failures[0] and "broken or truncated" in rows.failures[1]
    assert "decompression bomb" in rows.failures[2]


def test_one_pixel_is_enough_for_a_score() -> None:
    batch = load_scorer("toy", device="cpu").score(["a red circle"], [Image.new("RGB", (1, 1), "red")])
    assert batch.ok.all()


def test_held_images_are_not_decoded_early(tmp_path) -> None:
    assert isinstance(held(str(tmp_path / "nothing.png"), "Image 0"), Media)
    with pytest.raises(UserError, match=r"nothing\.png"):
        picture(Media.image(tmp_path / "nothing.png"))

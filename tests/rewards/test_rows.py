"""Rows made distinct: what equals what, and where the failures go."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from palate.records import Media
from rewards.rows import cross, gather


def _png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=30))
def test_indices_lead_back_to_what_was_given(pairs) -> None:
    files = [_png((40 * k, 0, 0)) for k in range(4)]
    rows = gather([p for p, _ in pairs], [files[k] for _, k in pairs])
    assert [rows.prompts[k] for k in rows.prompt_of] == [p for p, _ in pairs]
    assert [rows.images[k].data for k in rows.image_of] == [files[k] for _, k in pairs]
    assert len(rows.images) == len({k for _, k in pairs}) and len(rows.prompts) == len({p for p, _ in pairs})
    assert [g.tolist() for g in rows.by_image()] == [
        [i for i, (_, k) in enumerate(pairs) if files[k] == image.data] for image in rows.images
    ]


def test_one_file_in_any_wrapping_is_one_image(tmp_path) -> None:
    data = _png((9, 9, 9))
    (tmp_path / "a.png").write_bytes(data)
    given = [data, bytearray(data), memoryview(data), tmp_path / "a.png", str(tmp_path / "a.png"), Media.image(data)]
    assert len(gather(["p"] * 6, given).images) == 1


def test_pil_images_are_equal_if_their_pixels_are() -> None:
    base = Image.new("RGB", (4, 2), (1, 2, 3))
    turned, other = Image.new("RGB", (2, 4), (1, 2, 3)), Image.new("RGB", (4, 2), (1, 2, 4))
    palette = [Image.new("P", (4, 2)) for _ in range(2)]
    palette[0].putpalette([255, 0, 0])
    palette[1].putpalette([0, 255, 0])
    rows = gather(["p"] * 6, [base, base.copy(), turned, other, *palette])
    assert rows.image_of.tolist() == [0, 0, 1, 2, 3, 4]


def test_unreadable_images_fail_all_their_rows_when_decoded() -> None:
    data, torn = _png((9, 9, 9)), _png((1, 1, 1))[:40]
    rows = gather(["p", "q", "r"], [torn, data, torn])
    seen = list(rows.decoded(np.asarray, batch_size=1))
    assert [indices for indices, _ in seen] == [[], [1]]
    assert sorted(rows.failures) == [0, 2] and "is not an image" in rows.failures[0]
    assert rows.ok.tolist() == [False, True, False]
    assert [g.tolist() for g in rows.by_image()] == [[], [1]]


def test_images_made_on_the_fly_are_told_apart() -> None:
    """A sequence that renders when asked frees each duplicate, so that objects of other content reuse its id()."""

    class Rendered(list):
        def __iter__(self):
            return (Image.new("RGB", (4, 4), (colour, 0, 0)) for colour in list.__iter__(self))

    colours = [0, 0, 1, 0, 2, 1, 3, 0, 0, 4] * 20
    rows = gather(["p"] * len(colours), Rendered(colours))
    assert [rows.images[k].getpixel((0, 0))[0] for k in rows.image_of] == colours


@given(st.integers(0, 4), st.integers(0, 4))
def test_cross_is_every_prompt_with_every_image(prompts, images) -> None:
    """Row p * I + i; equal prompts and images are still one."""
    files = [_png((40 * (k // 2), 0, 0)) for k in range(images)]
    texts = [f"prompt {k // 2}" for k in range(prompts)]
    rows = cross(texts, files)
    expected = gather([p for p in texts for _ in files], [f for _ in texts for f in files])
    assert rows.prompt_of.tolist() == expected.prompt_of.tolist()
    assert rows.image_of.tolist() == expected.image_of.tolist()
    assert rows.prompts == expected.prompts or not images


def test_cross_fails_all_rows_of_an_image() -> None:
    rows = cross(["p", "q"], [_png((1, 1, 1)), None, _png((2, 2, 2))])
    assert sorted(rows.failures) == [1, 4]
    assert rows.image_of.tolist() == [0, -1, 1] * 2


def test_only_wanted_images_are_decoded() -> None:
    rows = gather(["p"] * 4, [_png((k, 0, 0)) for k in range(4)])
    assert [indices for indices, _ in rows.decoded(np.asarray, 2, wanted=[3, 1, 0])] == [[3, 1], [0]]


def test_leaving_early_waits_for_nothing_more() -> None:
    """What was not begun is cancelled: of 40 images in batches of one, at most those of the pool's threads are decoded."""
    rows = gather(["p"] * 40, [_png((k, 0, 0)) for k in range(40)])
    decoded = []
    stream = rows.decoded(lambda picture: decoded.append(1), batch_size=1)
    next(stream)
    stream.close()
    assert len(decoded) <= 4


def test_a_text_output_has_no_picture() -> None:
    rows = gather(["p"], [Media.of_text("hello")])
    list(rows.decoded(np.asarray, batch_size=4))
    assert "is a text" in rows.failures[0]

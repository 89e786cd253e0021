"""Packs: made from what lies on disk, read with suspicion, imported once; pictures as voters get them."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import func, select

from apps import pack as command
from apps.arena.errors import Refused
from apps.arena.packs import measures
from apps.arena.packs.format import FILE, Pack, PackItem, PackOutput, read_pack
from apps.arena.packs.gold import spoil_image, spoil_text
from apps.arena.packs.importing import import_pack
from apps.arena.packs.media import common_size, encode, equal_length, on_canvas, pad, pixel_id, read_upload
from apps.arena.store import schema
from palate.errors import UserError
from tests.apps.arena.small import PLAIN, image_pack, named_png, picture, small_arena


def sample_folder(folder: Path, seed: int, prompts: list[str], flagged: int = -1) -> Path:
    """Write what `palate sample` writes."""
    folder.mkdir(parents=True)
    rows = []
    for number, prompt in enumerate(prompts):
        name = f"{number:06d}.png"
        (folder / name).write_bytes(named_png(picture(seed + number), folder.name))
        rows.append({"file_name": name, "prompt": prompt, "seed": number, "model": "m", "flagged": number == flagged})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_pack_of_sample_folders_is_made_and_extended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flagged images stay out, nothing tells who made a file, a second run reads no picture, a third model is added."""
    prompts = ["a cat", "a dog", "a bee"]
    one = sample_folder(tmp_path / "one", 0, prompts)
    two = sample_folder(tmp_path / "two", 100, prompts, flagged=2)
    out = tmp_path / "pack"
    command.main([f"alpha={one}", f"beta={two}", "--out", str(out), "--category", "animals", "--zip"])
    assert "5 outputs (5 new) to 3 prompts" in capsys.readouterr().out
    made = read_pack(out)
    assert made.models == ("alpha", "beta") and [item.category for item in made.items] == ["animals"] * 3
    assert [len(item.outputs) for item in made.items] == [2, 2, 1]
    for item in made.items:
        for output in item.outputs:
            data = made.read(output.file or "")
            assert not any(word in data for word in (b"one", b"two", b"made by", b"Exif"))
    zipped = read_pack(tmp_path / "pack.zip")
    assert zipped.items == made.items and zipped.read(made.items[0].outputs[0].file or "") == made.read(
        made.items[0].outputs[0].file or ""
    )
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    three = sample_folder(tmp_path / "three", 200, prompts)
    command.main([f"alpha={one}", f"beta={two}", f"gamma={three}", "--out", str(out)])
    assert "8 outputs (3 new) to 3 prompts" in capsys.readouterr().out
    assert before.items() <= {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}.items()
    assert read_pack(out).title == "pack"


def test_plain_folders_and_answers(tmp_path: Path) -> None:
    """Prompts from a table, from a text beside the picture, from its name; answers with a question's picture."""
    for model in ("x", "y"):
        (tmp_path / model).mkdir()
        for number, name in enumerate(("red_fox.png", "b.jpg", "c.webp")):
            picture(ord(model) + number).save(tmp_path / model / name)
    (tmp_path / "x" / "b.txt").write_text("a badger\n")
    (tmp_path / "y" / "b.txt").write_text("a badger")
    (tmp_path / "list.csv").write_text("file_name,prompt,category\nc.webp,a cow,farm\n")
    rows = [{"image": "x/b.jpg", "question": "What?", "answer": "A badger.", "seed": 3}]
    for name in ("p", "q"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        rows[0]["answer"] = "A cow?"
    out = tmp_path / "pack"
    sources = [f"{name}={tmp_path / name}" for name in "xy"] + [f"{name}={tmp_path / name}.jsonl" for name in "pq"]
    command.main([*sources, "--out", str(out), "--file-prompts", str(tmp_path / "list.csv")])
    items = {item.prompt: item for item in read_pack(out).items}
    assert set(items) == {"red fox", "a badger", "a cow", "What?"} and items["a cow"].category == "farm"
    assert [output.text for output in items["What?"].outputs] == ["A badger.", "A cow?"] and items["What?"].question


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Give sources as NAME=FOLDER"),
        (["folder"], "'folder' should read NAME=SOURCE"),
        (["a=/nowhere"], "/nowhere is neither a folder of pictures"),
        (["a=x", "a=y"], "Two sources are named a"),
        (["--model", "a=toy:sd"], "--model and --prompts go together"),
    ],
)
def test_what_cannot_be_packed_is_said(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        command.main([*words, "--out", str(tmp_path / "pack")])


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something that is not a pack"):
        command.main([f"a={sample_folder(tmp_path / 'a', 0, ['x'])}", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "zip"}, "does not say"),
        ({"items": []}, "has no items"),
        ({"items": [{"prompt": "x"}]}, "item 0: no 'outputs'"),
        ({"items": [{"prompt": " ", "outputs": [{"model": "m", "text": "t"}]}]}, "the prompt is empty"),
        ({"items": [{"prompt": "x", "outputs": [{"model": "m"}]}]}, "either file or text"),
        ({"items": [{"prompt": "x", "outputs": [{"model": "m", "file": "../a.png"}]}]}, "not a name within the pack"),
        ({"items": [{"prompt": "x", "outputs": [{"model": "m", "file": "/a.png"}]}]}, "not a name within the pack"),
        ({"items": [{"prompt": "x", "outputs": [{"model": 3, "text": "t"}]}]}, "'model' must be str, not int"),
        ({"items": [{"prompt": "x", "outputs": [{"model": "\n", "text": "t"}]}]}, "either file or text"),
    ],
)
def test_a_wrong_pack_is_refused_by_item(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    head = {"format": "palate pack 1", "items": [{"prompt": "x", "outputs": [{"model": "m", "text": "t"}]}]}
    (tmp_path / FILE).write_text(json.dumps({**head, **change}))
    with pytest.raises(UserError, match=said):
        read_pack(tmp_path)


def test_a_zip_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.arena.packs.format.MOST_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(FILE, " " * 2000)
    with pytest.raises(UserError, match="unpacks to 2,000 bytes"):
        read_pack(tmp_path / "bomb.zip")


def test_an_import_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle, then run again: every output is there once; a third run does nothing."""
    monkeypatch.setattr("apps.arena.packs.importing.BATCH", 2)
    whole = image_pack(prompts=6)

    def dying(name: str) -> bytes:
        if "-4-" in name:
            raise KeyboardInterrupt
        return whole.read(name)

    with small_arena(tmp_path, PLAIN, packs=()) as small:
        arena = small.arena
        with pytest.raises(KeyboardInterrupt):
            import_pack(arena.writer, arena.media, Pack(whole.title, whole.items, whole.digest, dying), 0)
        assert import_pack(arena.writer, arena.media, whole, 0) == 2 * 3 * 2
        assert import_pack(arena.writer, arena.media, whole, 0) == 0
        with arena.engine.connect() as connection:
            rows = connection.execute(select(func.count()).select_from(schema.outputs)).scalar()
        assert rows == 6 * 3 * 2 + 6


def test_pictures_of_two_sizes_are_served_alike(tmp_path: Path) -> None:
    """The smaller is enlarged onto the larger one's canvas; pixels of the larger are untouched."""
    large, small_one = picture(1, (40, 40)), picture(2, (20, 10))
    files = {"l.png": encode(large), "s.png": encode(small_one)}
    item = PackItem("x", (PackOutput("big", "l.png"), PackOutput("tiny", "s.png")))
    with small_arena(tmp_path, packs=(Pack("two", (item,), "d" * 32, files.__getitem__),)) as small:
        voter = small.voter()
        battle = voter.battle()
        sides = [voter.http.get(battle[side]["url"]) for side in "ab"]
        assert len(sides[0].content) == len(sides[1].content)
        shown = [Image.open(io.BytesIO(side.content)).convert("RGB") for side in sides]
        assert shown[0].size == shown[1].size == (40, 40)
        assert pixel_id(large) in {pixel_id(side) for side in shown}
        other = next(side for side in shown if pixel_id(side) != pixel_id(large))
        assert other.getpixel((0, 0)) == other.getpixel((39, 39)) == (128, 128, 128)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 5000))
def test_padding_changes_nothing_but_the_length(width: int, height: int, other: int) -> None:
    image = picture(width * 100 + height, (width, height))
    png = encode(image)
    length = equal_length(len(png), other)
    padded = pad(png, length)
    assert len(padded) == length and length % 1024 == 0
    again = Image.open(io.BytesIO(padded))
    again.load()
    assert np.array_equal(np.asarray(again), np.asarray(image)) and not again.info


def test_canvas() -> None:
    """By hand: 20 x 10 on 40 x 40 is scaled by 2 to 40 x 20 and lies 10 pixels down; equal sizes are left alone."""
    white = Image.new("RGB", (20, 10), (255, 255, 255))
    canvas = on_canvas(white, (40, 40))
    column = [canvas.getpixel((20, y)) for y in range(40)]
    assert column == [(128,) * 3] * 10 + [(255,) * 3] * 20 + [(128,) * 3] * 10
    assert on_canvas(white, (20, 10)) is white
    assert common_size((40, 40), (20, 10)) == common_size((20, 10), (40, 40)) == (40, 40)


def test_uploads_are_measured_before_they_are_unpacked() -> None:
    """A PNG whose header claims 50,000 x 50,000 pixels is refused by its header; so are other formats and noise."""
    bomb = bytearray(encode(picture(0)))
    bomb[16:24] = (50_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(Refused) as refused:
        read_upload(bytes(bomb), 16_000_000)
    assert refused.value.code == "large"
    gif = io.BytesIO()
    picture(0).save(gif, "GIF")
    for data in (gif.getvalue(), b"<svg onload='x'/>", b"", encode(picture(0))[:60]):
        with pytest.raises(Refused) as refused:
            read_upload(data, 16_000_000)
        assert refused.value.code == "invalid"
    assert read_upload(named_png(picture(3), "camera"), 16_000_000).size == (24, 16)


def test_spoilt_copies_are_the_same_at_any_time_and_nothing_stays_in_place() -> None:
    image = picture(5, (64, 64))
    spoilt = spoil_image(image, "name")
    assert pixel_id(spoilt) == pixel_id(spoil_image(image, "name")) and spoilt.size == image.size
    tiles = [(x, y, x + 16, y + 16) for y in range(0, 64, 16) for x in range(0, 64, 16)]
    assert not any(image.crop(tile).tobytes() == spoilt.crop(tile).tobytes() for tile in tiles)
    assert sorted(image.crop(t).tobytes() for t in tiles) == sorted(spoilt.crop(t).tobytes() for t in tiles)
    words = "one two three four five six seven eight"
    mixed = spoil_text(words, "name") or ""
    assert sorted(mixed.split()) == sorted(words.split())
    assert not any(a == b for a, b in zip(words.split(), mixed.split(), strict=True))
    assert spoil_text("too short", "name") is None


def test_measures_by_hand() -> None:
    """2 x 4 pixels of pure red: 8e-6 megapixels, log(1/2), luminance .299, saturation 1, no edges."""
    assert measures.of_image(Image.new("RGB", (2, 4), (255, 0, 0))) == {
        "megapixels": 8e-6,
        "aspect": round(float(np.log(0.5)), 6),
        "luminance": 0.299,
        "saturation": 1.0,
        "sharpness": 0.0,
    }
    text = "# Answer\n\n- **one** thing\n2. two\n"
    assert measures.of_text(text) == {"length": 7.0, "lists": 2.0, "bold": 1.0, "headings": 1.0}

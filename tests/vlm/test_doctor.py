"""`palate doctor` as a user calls it: each fault is planted in one row, and found there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps.cli import main
from palate.conversations import AnswerPair, Message
from palate.findings import Findings
from palate.readers import open_pairs, write_answer_pairs, write_pairs
from palate.readers.answers import open_answer_pairs
from palate.records import Media
from tests.tiny import noise_pairs, save_tiny_sd
from tests.tiny_vlm import picture, save_tiny_vlm
from vlm.doctor import examine
from vlm.loading import load_model


def doctor(*words: Any, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *map(str, words)])
    assert ended.value.code == code


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vlm("llava", tmp_path_factory.mktemp("tiny"))


def sound(count: int, first: int = 0) -> list[AnswerPair]:
    """Return pairs without a fault; every other one has the answers of the one before exchanged."""
    answers = ("a red cat", "a blue cat")
    shown = [Media.image(picture(first + k)) for k in range(count)]
    return [
        AnswerPair.ask("what is in the image?", [image], answers[k % 2], answers[1 - k % 2])
        for k, image in enumerate(shown)
    ]


def found_in(path: Path, **how: Any) -> tuple[Findings, dict[str, list[int]]]:
    found = examine(open_answer_pairs(path, on_bad_row="skip"), **how)
    return found, {finding.what: finding.rows for finding in found.all}


def test_sound_pairs_pass(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_answer_pairs(sound(3), tmp_path / "a.parquet")
    write_answer_pairs(sound(2, first=9), tmp_path / "b.parquet")
    doctor("--data", tmp_path / "a.parquet", "--model", tiny, "--held-out", tmp_path / "b.parquet", "--device", "cpu")
    said = capsys.readouterr().out
    assert "Nothing is wrong." in said and "answers end with: '</s>'" in said


def test_each_fault_is_found_in_its_row_and_left_out_of_the_clean_pairs(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sound(5)
    pairs = [
        good[0],
        replace(good[1], rejected=f"{good[1].chosen} "),
        good[0],
        good[0].swap(),
        replace(good[2], chosen="a <image> cat"),
        replace(good[3], prompt=(Message.user("what is this? " * 40, 1),)),
        replace(good[4], rejected="two dogs " * 20),
    ]
    data, clean = tmp_path / "pairs.parquet", tmp_path / "clean.parquet"
    write_answer_pairs(pairs, data)
    loaded = load_model(str(tiny))
    room = 90
    found, rows = found_in(data, loaded=loaded, max_length=room)
    assert {what: where for what, where in rows.items() if where} == {
        "both answers are the same": [1],
        "the same pair stands in an earlier row": [2],
        "an earlier row prefers the other answer": [3],
        "the model's processor cannot take the pair": [4],
        f"the prompt alone fills {room} tokens": [5],
        f"an answer loses its end and its end-of-turn token at {room} tokens": [6],
    }
    assert found.rows_with_errors() == {1, 4, 5}
    doctor("--data", data, "--model", tiny, "--max-length", room, "--write-clean", clean, "--device", "cpu", code=1)
    assert "4 pairs without errors" in capsys.readouterr().out
    assert [pair.rejected for pair in open_answer_pairs(clean).iter_good()] == [pairs[k].rejected for k in (0, 2, 3, 6)]
    doctor("--data", clean, "--model", tiny, "--max-length", room, "--device", "cpu")


def test_a_processor_of_another_model_is_found(tiny: Path, tmp_path: Path) -> None:
    """Its images are cut into patches half as wide: four times the tokens."""
    write_answer_pairs(sound(2), tmp_path / "a.parquet")
    loaded = load_model(str(tiny))
    loaded.processor.patch_size //= 2
    _, rows = found_in(tmp_path / "a.parquet", loaded=loaded)
    assert rows == {"an image has another number of tokens than of features": [0, 1]}


def test_an_end_at_which_generation_does_not_stop(tiny: Path, tmp_path: Path) -> None:
    write_answer_pairs(sound(1), tmp_path / "a.parquet")
    loaded = load_model(str(tiny))
    loaded.model.generation_config.eos_token_id = 7
    found, rows = found_in(tmp_path / "a.parquet", loaded=loaded)
    assert list(rows) == ["answers end with '</s>', at which the model's generation does not stop"]
    assert not found.has_errors


def test_images_that_are_held_out_are_known_by_content(tmp_path: Path) -> None:
    """The same picture under another question, and a question without a picture."""
    text = AnswerPair.ask("how many?", [], "one", "two")
    write_answer_pairs([*sound(2), text], tmp_path / "a.parquet")
    other = AnswerPair.ask("and here?", [Media.image(picture(1))], "a dog", "a cat")
    write_answer_pairs([other, text], tmp_path / "b.parquet")
    held_out = open_answer_pairs(tmp_path / "b.parquet", on_bad_row="skip")
    _, rows = found_in(tmp_path / "a.parquet", held_out=held_out)
    assert rows == {"held-out images are trained on": [1, 2]}


def test_rows_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file, a broken one and an empty answer; the pairs are of POVID's columns."""
    picture(0).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"no image")

    def turns(said: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": said}]

    given = [("good.png", "a cat"), ("broken.png", "a cat"), ("missing.png", "a cat"), ("good.png", "")]
    rows = [
        {"image": name, "conversations": turns(said), "rejected_conversations": turns("a dog")} for name, said in given
    ]
    (tmp_path / "povid.json").write_text(json.dumps(rows))
    doctor("--data", tmp_path / "povid.json", "--write-clean", tmp_path / "clean", code=1)
    said = capsys.readouterr().out
    assert said.count("\nerror") == 3 and "(row 1)" in said and "(row 2)" in said and "(row 3)" in said
    assert len(open_answer_pairs(tmp_path / "clean")) == 1


def test_a_length_that_gives_the_chosen_answers_away(tmp_path: Path) -> None:
    """By hand: 3 words against 6 in every pair; the spread is 0, so any interval excludes 0."""
    write_answer_pairs([replace(p, rejected="two dogs and a cat here") for p in sound(3)], tmp_path / "a.parquet")
    found, rows = found_in(tmp_path / "a.parquet")
    assert rows == {"chosen answers are shorter by 3.0 words on average": []}
    assert "rejected longer in 100%" in found.figures["length"] and not found.has_errors


def test_pairs_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kind is told by the data; the tiny pipeline draws 16 pixels and its tokenizer takes few tokens."""
    model = save_tiny_sd(tmp_path / "sd")
    pairs = noise_pairs(3, size=(64, 64))
    pairs += [
        replace(pairs[0], rejected=pairs[0].chosen),
        pairs[1].swap(),
        replace(pairs[2], prompt="a circle " * 99, rejected=noise_pairs(1, size=(4, 64))[0].rejected),
    ]
    data, clean = tmp_path / "pairs.parquet", tmp_path / "clean.parquet"
    write_pairs(pairs, data)
    doctor("--data", data, "--model", model, "--write-clean", clean, code=1)
    said = capsys.readouterr().out
    for words in (
        "both images are the same (row 3)",
        "an earlier row prefers the other image (row 4)",
        "the two images differ in size (row 5)",
        "the prompt loses its end",
        "an image is smaller than the model's",
    ):
        assert words in said
    assert len(open_pairs(clean)) == 5
    doctor("--data", clean, "--held-out", data, "--limit", 1, code=1)
    assert "held-out prompts or images are trained on (row 0)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "nowhere.parquet"], "nowhere.parquet"),
        (["--data", "a.parquet", "--write-clean", "./a.parquet"], "would replace the data"),
        (["--data", "a.parquet", "--max-length", 0], "--max-length must be at least 1"),
        (["--data", "a.parquet", "--model", "liuhaotian/llava-v1.5-7b"], "llava-hf/llava-1.5-7b-hf"),
        (["--data", "a.parquet", "--kind", "images"], "expected text"),
        (["--data", "a.parquet", "--format", "povidd"], "povid"),
    ],
)
def test_wrong_options(
    words: list[Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_answer_pairs(sound(1), "a.parquet")
    doctor(*words, code=2)
    assert said in capsys.readouterr().err

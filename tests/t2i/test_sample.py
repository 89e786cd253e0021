"""The same prompt and seed give the same image; folders resume; prompts are read from what users have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from apps import sample as sample_command
from palate.errors import UserError
from t2i import sample as sampling
from t2i.sample import Sample, draw_folder, generate, load_pipeline, read_folder, read_prompts, repeat_prompts
from tests.t2i.tiny_pipelines import tiny_sd3
from tests.tiny import PROMPTS, tiny_sd

QUICK: dict[str, Any] = {"steps": 3, "guidance": 4.0}


@pytest.fixture
def pipeline() -> StableDiffusionPipeline:
    """The tiny random pipeline, silent."""
    made = tiny_sd()
    made.set_progress_bar_config(disable=True)
    return made


def pixels(sample: Sample) -> np.ndarray:
    """Return a sample's image as numbers from 0 to 255."""
    return np.asarray(sample.image, dtype=np.float32)


def test_an_image_depends_on_prompt_and_seed_alone(pipeline: StableDiffusionPipeline) -> None:
    """In a batch of 1, of 2 or of 5, in any order: within one grey level, which rounding may cost."""
    prompts, seeds = [*PROMPTS], [7, 3, 7, 0, 11]
    alone, twos, all_ = (list(generate(pipeline, prompts, seeds, batch_size=size, **QUICK)) for size in (1, 2, 5))
    turned = list(generate(pipeline, prompts[::-1], seeds[::-1], batch_size=2, **QUICK))[::-1]
    for samples in (twos, all_, turned):
        assert [(s.prompt, s.seed) for s in samples] == list(zip(prompts, seeds, strict=True))
        for one, other in zip(alone, samples, strict=True):
            assert np.abs(pixels(one) - pixels(other)).max() <= 1
    (other_seed,) = generate(pipeline, prompts[:1], [8], **QUICK)
    assert np.abs(pixels(alone[0]) - pixels(other_seed)).max() > 10


def test_the_length_of_the_long_text_reaches_the_pipeline(pipeline: StableDiffusionPipeline) -> None:
    asked: list[dict[str, Any]] = []

    def finished(*_: Any, **how: Any) -> list[Any]:
        asked.append(how)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("t2i.sample.finished", finished)
        for own in ({}, {"max_sequence_length": 20}):
            assert not list(generate(tiny_sd3(), ["a"], [0], **own))
    assert [how.get("max_sequence_length") for how in asked] == [None, 20]
    with pytest.raises(UserError, match="StableDiffusionPipeline takes no max_sequence_length"):
        list(generate(pipeline, ["a"], [0], max_sequence_length=20))


def test_seeds_and_prompts_go_one_to_one(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(ValueError, match="2 prompts but 1 seeds"):
        list(generate(pipeline, ["a", "b"], [0], **QUICK))


def test_saturation_counts_latents_beyond_four(pipeline: StableDiffusionPipeline, monkeypatch: Any) -> None:
    """A callback sees latents of which 3 of 8 lie beyond 4 in absolute value: 3/8."""
    import torch

    class Output:
        images = (None,)

    def call(prompts: list[str], *, callback_on_step_end: Any, **_: Any) -> Output:
        callback_on_step_end(None, 0, 0, {"latents": torch.tensor([[0.0, 4.0, -4.0, 4.1, -5.0, 9.0, 1.0, 2.0]])})
        return Output()

    (found,) = generate(call, ["a"], [0])
    assert found.saturation == 3 / 8 and found.flagged is False


def test_a_folder_is_continued_where_it_stopped(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    prompts, seeds = repeat_prompts(PROMPTS[:2], 2, seed=5)
    assert (prompts, seeds) == ([PROMPTS[0]] * 2 + [PROMPTS[1]] * 2, [5, 6, 7, 8])
    half = draw_folder(pipeline, prompts, seeds, tmp_path / "a", model="m", batch_size=1, **QUICK)
    next(half), next(half)
    half.close()
    with (tmp_path / "a" / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "0000')  # torn by a kill
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a").glob("*.png")}
    assert sorted(times) == ["000000.png", "000001.png"]
    new = list(draw_folder(pipeline, prompts, seeds, tmp_path / "a", model="m", batch_size=4, **QUICK))
    assert [(s.prompt, s.seed) for s in new] == [(PROMPTS[1], 7), (PROMPTS[1], 8)]
    assert all((tmp_path / "a" / name).stat().st_mtime_ns == time for name, time in times.items())
    assert list(draw_folder(pipeline, prompts, seeds, tmp_path / "a", model="m", **QUICK)) == []
    assert [(r["prompt"], r["seed"], r["file_name"]) for r in read_folder(tmp_path / "a")] == [
        (p, s, f"{k:06d}.png") for k, (p, s) in enumerate(zip(prompts, seeds, strict=True))
    ]


@pytest.mark.parametrize("change", [{"steps": 4}, {"guidance": 1.0}, {"model": "other"}, {"side": 32}])
def test_a_folder_of_other_settings_is_refused(change: dict[str, Any], tmp_path: Path, pipeline: Any) -> None:
    how = {"model": "m", **QUICK}
    list(draw_folder(pipeline, ["a red circle"], [0], tmp_path, **how))
    with pytest.raises(UserError, match=r"other settings .*Give another --out"):
        list(draw_folder(pipeline, ["a red circle"], [0], tmp_path, **{**how, **change}))
    assert list(draw_folder(pipeline, ["a red circle"], [0], tmp_path, batch_size=7, **how)) == []


def test_flags_reach_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: Any) -> None:
    drawn = list(generate(pipeline, [PROMPTS[0]] * 2, [0, 1], **QUICK))
    flagged = [Sample(s.prompt, s.seed, s.image, bool(s.seed), s.saturation) for s in drawn]
    monkeypatch.setattr(sampling, "generate", lambda *_, **__: iter(flagged))
    list(draw_folder(pipeline, [PROMPTS[0]] * 2, [0, 1], tmp_path, model="m", **QUICK))
    assert [row["flagged"] for row in read_folder(tmp_path)] == [False, True]


def test_prompt_files(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\n\n b \na\n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "tag": 1}\n', encoding="utf-8")
    (tmp_path / "p.csv").write_text('id,prompt\n1,"a, then b"\n', encoding="utf-8")
    (tmp_path / "p.tsv").write_text("Prompt\tCategory\na\tx\nb\ty\n", encoding="utf-8")
    read = {p.suffix: read_prompts(str(p)) for p in tmp_path.iterdir()}
    assert read == {".txt": ["a", "b"], ".jsonl": ["a", "b"], ".csv": ["a, then b"], ".tsv": ["a", "b"]}
    assert read_prompts(str(tmp_path / "p.txt"), 1) == ["a"]
    assert len(read_prompts("toy:held_out", 3)) == 3


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.jsonl", '{"caption": "a"}\n', r"line 1: no field 'prompt'. Found: caption"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"p\.jsonl, line 2: not JSON"),
        ("p.jsonl", '"a red circle"\n', r"p\.jsonl, line 1: expected an object"),
        ("p.txt", "\n \n", "holds no prompts"),
        ("p.docx", "a", r"not '\.docx'"),
        ("", "", "No file of prompts at"),
    ],
)
def test_prompt_files_that_do_not_serve(name: str, text: str, words: str, tmp_path: Path) -> None:
    if name:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_prompts(str(tmp_path / (name or "missing.txt")))


def test_the_command_draws_and_says_how_many(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(model), "--prompt", "a red circle", "--per-prompt", "2", "--steps", "2"]
    for expected in ("2 new of 2 images", "0 new of 2 images"):
        sample_command.main([*words, "--out", str(tmp_path / "out"), "--device", "cpu"])
        assert expected in capsys.readouterr().out
    row = json.loads((tmp_path / "out" / "metadata.jsonl").read_text().splitlines()[0])
    assert row["file_name"] == "000000.png" and row["model"] == str(model) and row["seed"] == 0
    with pytest.raises(UserError, match="either --prompts FILE or --prompt TEXT"):
        sample_command.main(["--model", str(model), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("option", ["--steps", "--batch-size", "--per-prompt"])
def test_numbers_with_which_nothing_is_drawn_are_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sample_command.main(["--model", "x", "--prompt", "a", "--out", str(tmp_path), option, "0"])
    assert f"argument {option}: must be a whole number of at least 1, not 0" in capsys.readouterr().err


def test_settings_of_an_ascent_without_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="settings of --reno"):
        sample_command.main(["--model", "x", "--prompt", "a", "--out", str(tmp_path), "--reno.lr", "3"])


def test_what_cannot_be_loaded_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a diffusers pipeline"):
        load_pipeline(str(tmp_path))
    with pytest.raises(UserError, match="owner/missing is neither a local path"):
        load_pipeline("owner/missing")

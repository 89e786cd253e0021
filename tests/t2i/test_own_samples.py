"""Pairs of given images with a model's own samples: resumable, by the command, from pairs and from folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps import own_samples as command
from palate.errors import UserError
from palate.readers import open_pairs
from t2i.sample import read_folder
from tests.t2i.test_pairs import broken


def words(model: Path, data: Path, out: Path) -> list[str]:
    return ["--model", str(model), "--data", str(data), "--out", str(out), "--steps", "1", "--device", "cpu"]


def test_chosen_images_go_against_own_samples(
    model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each target with a sample for its prompt, drawn once: a second call, or one after a kill, draws what is missing."""
    out = tmp_path / "own.parquet"
    command.main([*words(model, pairs, out), "--limit", "3"])
    assert "3 pairs in" in capsys.readouterr().out
    given, made = open_pairs(str(pairs)), open_pairs(str(out))
    assert [made[k].chosen.id for k in range(3)] == [given[k].chosen.id for k in range(3)]
    assert [made[k].prompt for k in range(3)] == [given[k].prompt for k in range(3)]
    assert len({made[k].rejected.id for k in range(3)}) == 3
    assert np.asarray(made[0].rejected.decode()).shape == (16, 16, 3) and made[0].p_chosen == 1.0
    first = made[0].rejected.id
    command.main([*words(model, pairs, out)])
    again = open_pairs(str(out))
    assert len(again) == 12 and again[0].rejected.id == first
    assert len(read_folder(tmp_path / "own.parquet.samples")) == 12


def test_several_samples_of_an_image_from_a_folder(model: Path, tmp_path: Path) -> None:
    from tests.tiny import noise_image

    folder = tmp_path / "images"
    folder.mkdir()
    noise_image(1).save(folder / "a.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "prompt": "a red circle"}\n')
    command.main([*words(model, folder, tmp_path / "own.parquet"), "--per-image", "2", "--seed", "4"])
    made = open_pairs(str(tmp_path / "own.parquet"))
    assert len(made) == 2 and made[0].chosen.id == made[1].chosen.id and made[0].rejected.id != made[1].rejected.id


def test_images_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    path = broken(tmp_path / "pairs.parquet", 4, [1, 2])
    targets, bad = command.read_targets(path, None)
    assert [prompt for prompt, _ in targets] == ["prompt 0", "prompt 3"] and bad == 2


def test_what_cannot_be_paired_is_refused(model: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"end in \.parquet"):
        command.main(words(model, pairs, tmp_path / "folder"))
    with pytest.raises(UserError, match="--per-image must be at least 1"):
        command.main([*words(model, pairs, tmp_path / "x.parquet"), "--per-image", "0"])
    with pytest.raises(UserError, match="--batch-size must be at least 1"):
        command.main([*words(model, pairs, tmp_path / "x.parquet"), "--batch-size", "0"])

"""A length of the long text that a run is told reaches all that it trains, caches, draws and plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import SD3Transformer2DModel

from palate.config import load_config
from t2i import online
from t2i.families import load_family
from t2i.plan import predict
from t2i.settings import OnlineConfig, T2IConfig
from t2i.train import open_references
from tests.t2i.runs import options, run_in_process

CLIP = 16
"""Tokens of tiny SD3's two first encoders, before those of the long text."""


def test_training_and_its_drawings_see_that_many_tokens(
    model_folders: dict[str, Path], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    plain = SD3Transformer2DModel.forward

    def listen(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["encoder_hidden_states"].shape[1])
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(SD3Transformer2DModel, "forward", listen)
    settings = {
        "model.path": str(model_folders["sd3"]),
        "model.tuning": "lora",
        "data.path": str(pairs),
        "data.image.resolution": 16,
        "data.held_out": 0.4,
        "train.steps": 1,
        "objective.terms": [{"objective": "dpo"}],
        "sample.steps": 1,
        "out": str(tmp_path / "run"),
    }
    run_in_process({**settings, "model.max_sequence_length": 20, "eval.every": 1, "sample.count": 1})
    assert set(seen) == {CLIP + 20} and len(list((tmp_path / "run").rglob("000.png"))) >= 1


def test_references_of_another_length_are_others(model_folders: dict[str, Path], tmp_path: Path) -> None:
    places = set()
    for length in (0, 20):
        words = options({"model.path": str(model_folders["sd3"]), "out": str(tmp_path)})
        config, _ = load_config(T2IConfig, [*words, "--model.max_sequence_length", str(length)], "t2i.train")
        family = load_family(config.model.path, length)
        assert family.max_sequence_length == (length or 256)
        places.add(open_references(config, family).store.folder)
    assert len(places) == 2


def test_rounds_draw_with_it(model_folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    words = [
        "--model.path",
        str(model_folders["sd3"]),
        "--out",
        str(tmp_path / "out"),
        "--rounds.scorers",
        "[toy-taste]",
    ]
    words += ["--rounds.prompts", str(tmp_path / "prompts.txt"), "--model.max_sequence_length", "20"]
    config, _ = load_config(OnlineConfig, words, "t2i.online")
    assert online._Rounds(config).how["max_sequence_length"] == 20


@pytest.mark.parametrize("name", ["sd3", "flux", "sana"])
def test_a_plan_counts_fewer_tokens_for_a_shorter_text(name: str, model_folders: dict[str, Path]) -> None:
    config = T2IConfig()
    config.model.path, config.data.image.resolution = str(model_folders[name]), 16
    config.train.precision = "fp32"
    whole = predict(config, "cpu")
    config.model.max_sequence_length = 20
    short = predict(config, "cpu")
    assert short.products < 0.9 * whole.products and short.peak < whole.peak

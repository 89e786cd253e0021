"""Runs of `rewards.train`: exact resuming, the best model, what a saved folder is, and that something is learnt."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from palate.errors import UserError
from palate.readers import write_pairs
from palate.records import Media, Pair
from palate.toy.world import Scene, Shape, render
from palate.training import checkpoint as checkpoints
from rewards.calibration import Calibration
from rewards.learning import LearnedScorer
from rewards.preprocess import of_open_clip
from tests.rewards.learning_runs import (
    interrupted_at,
    launch,
    rows,
    run,
    weights,
    write_data,
    write_rankings,
    write_transformers_clip,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("pairs") / "pairs.parquet")


def same(ours: Path, theirs: Path) -> bool:
    one, other = weights(ours), weights(theirs)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- resuming --------------------------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_run_that_never_stopped(folder: Path, data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model.path": folder, "data.path": data, "train.steps": 6}
    straight = run({**settings, "out": tmp_path / "straight"})
    with interrupted_at(5):
        run({**settings, "out": tmp_path / "cut"})
    resumed = run({**settings, "out": tmp_path / "cut", "resume": "auto"})
    assert same(resumed.model, straight.model) and same(tmp_path / "cut" / "best", tmp_path / "straight" / "best")
    assert resumed.report == straight.report

    def curve(out: Path) -> list[tuple[int, float]]:
        return [(row["step"], row["loss"]) for row in rows(out, "train")]

    assert curve(tmp_path / "cut") == curve(tmp_path / "straight")


def test_a_batch_in_parts_is_the_same_batch(folder: Path, data: Path, tmp_path: Path) -> None:
    """4 rankings at once, and 2 twice: weights are of mean 1 over the data, not over a batch."""
    settings = {"model.path": folder, "data.path": data, "eval.every": 0, "eval.keep_best": "", "train.steps": 3}
    whole = run({**settings, "out": tmp_path / "whole", "train.batch_size": 4})
    parts = run({**settings, "out": tmp_path / "parts", "train.batch_size": 2, "train.accumulation": 2})
    for name in ("loss", "grad_norm"):
        ours, theirs = ([row[name] for row in rows(outcome.out, "train")] for outcome in (whole, parts))
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.launch
def test_two_processes_are_one(folder: Path, data: Path, tmp_path: Path) -> None:
    """Two processes of 2 rankings take the steps of one of 4, and evaluate each held-out ranking once."""
    settings = {"model.path": folder, "data.path": data, "train.steps": 2, "data.held_out": 0.4}
    one = run({**settings, "out": tmp_path / "one", "train.batch_size": 4})
    launch(2, {**settings, "out": tmp_path / "two", "train.batch_size": 2})
    for kind, name in (("train", "loss"), ("train", "grad_norm"), ("eval", "eval/loss"), ("eval", "eval/comparisons")):
        ours, theirs = ([row[name] for row in rows(out, kind)] for out in (one.out, tmp_path / "two"))
        assert ours == pytest.approx(theirs, rel=1e-3), name
    assert Calibration.load(tmp_path / "two" / "best" / "calibration.json").votes > 0


def test_another_objective_is_another_run(folder: Path, data: Path, tmp_path: Path) -> None:
    settings = {"model.path": folder, "data.path": data, "out": tmp_path, "train.steps": 2}
    run(settings)
    with pytest.raises(UserError, match=r"objective\.name: checkpoint 'pickscore', now 'hpsv2'"):
        run({**settings, "resume": "auto", "objective.name": "hpsv2"})


# --- the best model --------------------------------------------------------------------------------------------------


def accuracies(monkeypatch: pytest.MonkeyPatch, by_step: Mapping[int, float]) -> None:
    """Make evaluations say what they are told to."""
    real = LearnedScorer.evaluate

    def told(self: LearnedScorer, module: Any, folder: Path, step: int) -> dict[str, float]:
        return real(self, module, folder, step) | {"accuracy": by_step[step]}

    monkeypatch.setattr(LearnedScorer, "evaluate", told)


def test_the_best_is_the_first_with_the_highest_accuracy(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies(monkeypatch, {0: 0.5, 2: 0.8, 4: 0.8, 6: 0.7})
    settings = {"model.path": folder, "data.path": data, "train.steps": 6, "checkpoint.keep": 0}
    outcome = run({**settings, "out": tmp_path})
    assert outcome.best == tmp_path / "best"
    assert same(outcome.best, tmp_path / "checkpoints" / "step-00000002" / "model")
    assert not same(outcome.best, outcome.model)
    best = [(row["step"], row["accuracy"]) for row in rows(tmp_path, "event") if row["event"] == "best"]
    assert best == [(0, 0.5), (2, 0.8)]


def test_a_resumed_run_remembers_the_best(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies(monkeypatch, {0: 0.5, 2: 0.8, 4: 0.7})
    settings = {"model.path": folder, "data.path": data, "out": tmp_path, "checkpoint.keep": 0}
    with interrupted_at(3):
        run(settings)
    run({**settings, "resume": "auto"})
    assert same(tmp_path / "best", tmp_path / "checkpoints" / "step-00000002" / "model")


def test_a_kill_while_the_best_is_written_leaves_the_old_one(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies(monkeypatch, {0: 0.5, 2: 0.8, 4: 0.9})
    save = LearnedScorer.save

    def torn(self: LearnedScorer, target: Path, state: Any) -> None:
        if target.name == ".best.part" and (tmp_path / "checkpoints" / "step-00000002").exists():
            target.mkdir()
            (target / "open_clip_config.json").write_text("{")
            raise KeyboardInterrupt
        save(self, target, state)

    settings = {"model.path": folder, "data.path": data, "out": tmp_path, "checkpoint.keep": 0}
    with monkeypatch.context() as patch:
        patch.setattr(LearnedScorer, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    assert same(tmp_path / "best", tmp_path / "checkpoints" / "step-00000002" / "model")
    outcome = run({**settings, "resume": "auto"})
    assert outcome.best and same(outcome.best, outcome.model) and not (tmp_path / ".best.part").exists()


def test_a_folder_is_put_in_place_of_another(tmp_path: Path) -> None:
    for name, words in ((".best.part", "new"), ("best", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(words)
    checkpoints.put_in_place(tmp_path / ".best.part", tmp_path / "best")
    assert os.listdir(tmp_path) == ["best"] and (tmp_path / "best" / "file").read_text() == "new"


def test_a_best_that_cannot_be_chosen_is_said(folder: Path, data: Path, tmp_path: Path) -> None:
    settings = {"model.path": folder, "data.path": data, "out": tmp_path}
    with pytest.raises(UserError, match="--eval.every 0 makes none"):
        run({**settings, "eval.every": 0})
    with pytest.raises(UserError, match="an evaluation measures accuracy, comparisons"):
        run({**settings, "eval.keep_best": "acuracy"})
    with pytest.raises(UserError, match="hold data out"):
        run({**settings, "data.held_out": 0.0})


# --- what is written -------------------------------------------------------------------------------------------------


def test_frozen_parts_are_written_as_they_were(folder: Path, data: Path, tmp_path: Path) -> None:
    settings = {
        "model.path": folder,
        "data.path": data,
        "out": tmp_path,
        "model.image_blocks": 1,
        "model.text_blocks": 0,
    }
    outcome = run({**settings, "model.scale_rate": 0})
    before, after = weights(folder), weights(outcome.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed
    assert all("resblocks.1." in n or n.startswith(("visual.ln_post", "visual.proj")) for n in changed)


def test_an_open_clip_folder_opens_in_open_clip(folder: Path, data: Path, tmp_path: Path) -> None:
    """With the same scores as while it was trained: accuracy on all pairs is what the journal says."""
    settings = {"model.path": folder, "data.path": data, "data.held_out_path": data, "model.fit": "pad"}
    outcome = run({**settings, "out": tmp_path, "train.steps": 2})
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{outcome.model}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{outcome.model}")
    config = open_clip.get_model_preprocess_cfg(model)
    assert config["resize_mode"] == "longest" and tuple(config["mean"]) == (0.4, 0.5, 0.6)
    from palate.readers import open_pairs

    pairs, right = open_pairs(data), []
    prepare = of_open_clip(config)
    with torch.no_grad():
        for k in range(len(pairs)):
            pair, *pictures = pairs.decoded(k)
            text = model.encode_text(tokenizer([pair.prompt]), normalize=True)
            cosine = (model.encode_image(torch.stack([prepare(p) for p in pictures]), normalize=True) @ text.T)[:, 0]
            right.append(float(cosine[0] > cosine[1]))
    assert outcome.report["eval/accuracy"] == pytest.approx(np.mean(right))


def test_a_transformers_folder_opens_in_transformers(data: Path, tmp_path: Path) -> None:
    source = write_transformers_clip(tmp_path / "clip")
    outcome = run({"model.path": source, "data.path": data, "out": tmp_path / "run", "model.text_blocks": 1})
    model = CLIPModel.from_pretrained(outcome.model)
    saved, trained = model.state_dict(), weights(outcome.model)
    assert all(torch.equal(saved[name], trained[name]) for name in trained)
    assert (outcome.model / "preprocessor_config.json").is_file() and (outcome.model / "tokenizer.json").is_file()
    assert Calibration.load(outcome.model / "calibration.json").unit == "logit"
    again = run({"model.path": outcome.model, "data.path": data, "out": tmp_path / "again", "train.steps": 1})
    assert rows(again.out, "eval")[0]["eval/accuracy"] == outcome.report["eval/accuracy"]


def test_a_calibration_goes_with_the_weights_that_it_was_fitted_on(folder: Path, data: Path, tmp_path: Path) -> None:
    """Steps 2 and 4 are evaluated, the checkpoint of step 3 is not; the folder scores in logits, and so is its unit."""
    settings = {"model.path": folder, "data.path": data, "out": tmp_path, "checkpoint.every": 1, "checkpoint.keep": 0}
    run(settings)
    found = {p.parent.parent.name[-1] for p in tmp_path.glob("checkpoints/*/model/calibration.json")}
    assert found == {"2", "4"}
    calibration = Calibration.load(tmp_path / "model" / "calibration.json")
    last = rows(tmp_path, "eval")[-1]
    assert calibration.unit == "logit" and calibration.votes > 0
    written = math.inf if last["eval/temperature"] is None else last["eval/temperature"]
    assert calibration.temperature == pytest.approx(written, rel=1e-6)


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["hpsv2", "hpsv2_listwise", "plackett_luce", "imagereward", "gaussian"])
def test_every_objective_learns_a_ranking_by_heart(objective: str, folder: Path, tmp_path: Path) -> None:
    data = write_rankings(tmp_path, 4)
    outcome = run(
        {
            "model.path": folder,
            "data.path": data,
            "data.held_out_path": data,
            "objective.name": objective,
            "out": tmp_path / "run",
            "train.steps": 12,
            "train.batch_size": 4,
            "optim.lr": 3e-3,
            "model.scale": 5,
            "eval.every": 12,
            "checkpoint.every": 0,
        }
    )
    first, last = rows(outcome.out, "eval")
    assert last["eval/loss"] < 0.8 * first["eval/loss"] and last["eval/accuracy"] > 0.8
    head = outcome.model / "log_sigma.safetensors"
    assert head.is_file() == (objective == "gaussian")
    if head.is_file():
        assert load_file(head)["sigma.weight"].abs().max() > 0


def larger(rng: np.random.Generator, prompt: str) -> Pair:
    """Return a pair in which the larger shape is the better one, at other places and of other kinds."""

    def scene(size: float) -> Media:
        kind, x, y = rng.choice(["circle", "square", "triangle"]), *rng.uniform(0.3, 0.7, 2)
        return Media.image(render(Scene((Shape(kind, "red", float(x), float(y), size),))))

    return Pair(prompt, scene(float(rng.uniform(0.17, 0.25))), scene(float(rng.uniform(0.08, 0.14))))


def test_a_taste_is_learnt_that_holds_for_other_prompts(tmp_path: Path) -> None:
    """The toy's model, which does not care for size, learns to from 96 pairs, and shows it on prompts it never saw."""
    rng = np.random.default_rng(0)
    prompts = [f"a {colour} {kind}" for colour in ("red", "green", "blue", "yellow") for kind in ("circle", "square")]
    write_pairs([larger(rng, prompts[k % 8]) for k in range(128)], tmp_path / "pairs.parquet")
    outcome = run(
        {
            "model.path": "toy",
            "data.path": tmp_path / "pairs.parquet",
            "data.held_out": 0.4,
            "model.scale": 5,
            "out": tmp_path / "run",
            "train.steps": 12,
            "train.batch_size": 12,
            "optim.lr": 5e-4,
            "eval.every": 12,
            "checkpoint.every": 0,
        }
    )
    first, last = rows(outcome.out, "eval")
    assert last["eval/accuracy"] > 0.85 > first["eval/accuracy"] + 0.1
    assert json.loads((outcome.model / "calibration.json").read_text())["prompts"] >= 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data.path": ""}, "--data.path is missing"),
        ({"model.path": ""}, "--model.path is missing"),
    ],
)
def test_what_is_missing_is_said(settings: Mapping[str, Any], words: str, data: Path) -> None:
    from rewards.train import main

    given = {"model.path": "toy", "data.path": str(data), **settings}
    with pytest.raises(UserError, match=words):
        main([word for name, value in given.items() for word in (f"--{name}", str(value))])

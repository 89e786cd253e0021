"""`vlm.train` from a command line to a model that other libraries load, and its errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from apps import merge
from palate.errors import GuardStop, UserError
from palate.training.guard import Guard, GuardConfig
from tests.t2i.runs import rows
from tests.vlm.batches import mixed_batch
from tests.vlm.runs import launch, noise_pairs, options, run_in_process, write
from vlm.evaluate.run import evaluate
from vlm.evaluate.toy import toy_chair, toy_picture
from vlm.generate import LocalAnswerer
from vlm.loading import load_model
from vlm.scoring import AnswerScores
from vlm.train import main

RECIPES = {
    "povid_stage1": {"objective.recipe": "povid_stage1", "model.projector.lr": 1e-3},
    "povid_stage2": {"objective.recipe": "povid_stage2"},
    "bpo": {"objective.recipe": "bpo", "train.workers": 1},
    "mdpo": {"objective.recipe": "mdpo", "model.gradient_checkpointing": True},
    "rlhf_v": {"objective.recipe": "rlhf_v", "model.language.tuning": "full", "model.tower.tuning": "full"},
    "simpo": {"objective.recipe": "simpo", "model.shared_prefix": "off"},
    "streaming": {"data.streaming": True, "objective.entanglement_every": 2},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "pairs.parquet", noise_pairs(12))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_lowers_its_loss_and_saves_a_model_that_others_load(
    recipe: str, tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path
):
    folder, out = tiny_folder("llava"), tmp_path / "run"
    settings = {
        "model.path": str(folder),
        "data.path": str(pairs),
        "data.limit": 4,
        "train.batch_size": 4,
        "train.steps": 6,
    }
    outcome = run_in_process({**settings, "optim.lr": 3e-3, "out": str(out), **RECIPES[recipe]})
    losses = [row["loss"] for row in rows(out, "train")]
    assert losses[-1] < losses[0] and not rows(out, "guard")

    if (outcome.model / "adapter_config.json").is_file():
        from peft import PeftModel

        plain = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(folder), outcome.model)
        plain = plain.merge_and_unload()
    else:
        plain = AutoModelForImageTextToText.from_pretrained(outcome.model)
    AutoProcessor.from_pretrained(outcome.model)
    trained = load_model(str(outcome.model))
    batch = mixed_batch(trained)
    with torch.no_grad():
        ours = AnswerScores(trained, with_reference=False)(batch).policy
        object.__setattr__(trained, "model", plain.eval())
        theirs = AnswerScores(trained, with_reference=False)(batch).policy
        before = AnswerScores(load_model(str(folder)), with_reference=False)(batch).policy
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert float((ours - before).abs().max()) > 1e-2


def test_a_merged_adapter_is_the_model_that_was_trained(
    tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path
):
    folder, out = tiny_folder("llava"), tmp_path / "run"
    run_in_process({"model.path": str(folder), "data.path": str(pairs), "train.steps": 1, "out": str(out)})
    merge.main(["--adapter", str(out), "--out", str(tmp_path / "merged")])
    merge.main(["--adapter", str(out), "--base", str(folder), "--out", str(tmp_path / "again")])
    trained, batch = load_model(str(out / "model")), None
    scores = []
    for loaded in (trained, load_model(str(tmp_path / "merged")), load_model(str(tmp_path / "again"))):
        batch = batch or mixed_batch(loaded)
        with torch.no_grad():
            scores.append(AnswerScores(loaded, with_reference=False)(batch).policy)
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[1], scores[2])
    with pytest.raises(UserError, match="--scale is for adapters of pipelines"):
        merge.main(["--adapter", str(out), "--out", str(tmp_path / "third"), "--scale", "0.5"])


def test_held_out_images_are_not_trained_on(tiny_folder: Callable[[str], Path], tmp_path: Path):
    """Every image occurs with two questions; the split parts images, not questions."""
    from dataclasses import replace

    from palate.conversations import Message
    from vlm.pairs import AnswerSource
    from vlm.settings import DataConfig

    single = [pair for pair in noise_pairs(20, text_only_every=0) if len(pair.images) == 1]
    twice = [p for pair in single for p in (pair, replace(pair, prompt=(Message.user("another?", 1),)))]
    path = write(tmp_path / "twice.parquet", twice)
    source = AnswerSource(DataConfig(path=str(path), held_out=0.4))
    assert source.training is not None and source.held_out is not None
    kept, held = (
        {image.id for n in range(len(part)) for image in part.read(n)[0].images}
        for part in (source.training, source.held_out)
    )
    assert held and not kept & held and len(source.training) + len(source.held_out) == len(twice)


def test_the_journal_says_what_happens(tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path):
    out = tmp_path / "run"
    settings = {"model.path": str(tiny_folder("llava")), "data.path": str(pairs), "out": str(out)}
    run_in_process(
        {**settings, "eval.every": 2, "data.held_out": 0.3, "data.max_length": 92, "objective.recipe": "mdpo"}
    )
    first, *_, last = rows(out, "eval")
    assert first["eval/margin"] == 0 and first["eval/accuracy"] == 0.5 and first["eval/image_reliance"] is not None
    assert last["eval/margin"] != 0 and last["eval/pairs"] == first["eval/pairs"]
    names = {"loss", "loss/anchor", "margin", "accuracy", "displacement", "drift/chosen", "chosen_fall", "chosen_nll"}
    for row in rows(out, "train"):
        assert names | {"length/chosen", "length/rejected", "cut_answers", "grad_norm", "lr"} <= row.keys()
    meta = json.loads((out / "checkpoints" / "step-00000004" / "meta.json").read_text())
    assert meta["fingerprint"]["objective"]["recipe"] == "mdpo"
    assert "recipe: mdpo" in (out / "model" / "palate.yaml").read_text()


def test_benchmarks_are_asked_at_every_evaluation(tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path):
    """The saved model says what the trained one said at its last evaluation."""
    out = tmp_path / "run"
    settings = {"model.path": str(tiny_folder("llava")), "data.path": str(pairs), "out": str(out), "data.held_out": 0.3}
    asked = {"eval.every": 2, "eval.pope": "toy:held_out", "eval.chair": ["toy:held_out"], "eval.questions": 3}
    outcome = run_in_process({**settings, **asked, "eval.keep_best": "toy pope/accuracy", "train.steps": 2})
    found = rows(out, "eval")
    assert [row["step"] for row in found] == [0, 2] and (out / "best").is_dir()
    for row in found:
        assert {
            "eval/margin",
            "eval/toy pope/accuracy",
            "eval/toy chair/CHAIR_i",
            "eval/toy chair/recall",
        } <= row.keys()
    written = json.loads((out / "samples" / "step-00000002" / "toy-chair.json").read_text())
    assert written["counts"]["descriptions"] == 3
    answerer = LocalAnswerer(load_model(str(outcome.model)), max_new_tokens=64)
    for name, figure in evaluate(toy_chair(), answerer, toy_picture, limit=3).metrics().items():
        assert found[-1][f"eval/{name}"] == (None if math.isnan(figure) else pytest.approx(figure))


@pytest.mark.launch
def test_benchmarks_are_asked_in_the_runs_precision(tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path):
    """The projector, which trains, is in fp32 between a frozen tower and language model in bf16."""
    settings = {"model.path": str(tiny_folder("llava")), "data.path": str(pairs), "out": str(tmp_path / "run")}
    asked = {"eval.every": 1, "eval.pope": "toy:held_out", "eval.questions": 2, "train.steps": 1}
    said = launch(["vlm.train"], {**settings, **asked, "train.precision": "bf16"})
    assert "exit status 0" in said and "cpu, bf16" in said, said
    assert all(row["eval/toy pope/length"] is not None for row in rows(tmp_path / "run", "eval"))


def test_a_fall_of_the_chosen_answers_stops_where_it_is_named(
    tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path
):
    """A pull away from the chosen answers: minus the weight of an sft term."""
    settings = {
        "model.path": str(tiny_folder("llava")),
        "data.path": str(pairs),
        "objective.recipe": "custom",
        "objective.terms": [{"objective": "dpo", "weight": 0.01}, {"objective": "sft", "weight": -1.0}],
        "optim.lr": 1e-2,
        "train.steps": 30,
        "checkpoint.every": 0,
        "guard.patience": 2,
        "guard.chosen_fall": 0.05,
    }
    with pytest.raises(GuardStop, match="chosen_fall: the chosen answers' log-probability fell"):
        run_in_process({**settings, "guard.stop_on": ["chosen_fall"], "out": str(tmp_path / "run")})


def test_the_guard_tells_a_margin_without_images():
    """The margin grows by 2: fine while the images' worth grows with it, an alarm where it does not, never without any."""
    for reliance, sounds in (([0.1, 0.3], False), ([0.1, 0.1], True), ([0.1, 0.05], True), ([float("nan")] * 2, False)):
        guard = Guard(GuardConfig())
        guard.look({"held_out_margin": 0.0, "image_reliance": reliance[0]})
        found = guard.look({"held_out_margin": 2.0, "image_reliance": reliance[1]})
        assert [finding.name for finding in found] == ["ungrounded"] * sounds
    guard = Guard(GuardConfig(patience=1, smoothing=0.0))
    assert not guard.look({"chosen_fall": float("nan"), "chosen_nll": 2.0})
    assert [f.name for f in guard.look({"chosen_fall": float("nan"), "chosen_nll": 2.6})] == ["chosen_fall"]


WRONG = {
    "no model": ({"model.path": ""}, r"--model\.path is missing"),
    "no data": ({"data.path": ""}, r"--data\.path is missing"),
    "old layout": ({"model.path": "liuhaotian/llava-v1.5-7b"}, "llava-hf/llava-1.5-7b-hf"),
    "nothing trains": ({"model.language.tuning": "frozen", "model.projector.tuning": "frozen"}, "Nothing would train"),
    "too long": ({"data.max_length": 12}, "the prompt alone has"),
    "no such recipe": ({"objective.recipe": "mdpoo"}, "did you mean 'mdpo'"),
    "no such part": ({"model.projecter.lr": 1}, "did you mean 'model.projector"),
    "image root": ({"data.image_root": "/nowhere"}, "is not a folder"),
    "benchmark, never": ({"eval.pope": "toy:held_out"}, r"--eval\.every 0 allows none"),
    "benchmark, no images": ({"eval.every": 1, "eval.chair": ["TRUTH"]}, r"--eval\.image_root is missing"),
    "benchmark, images gone": ({"eval.every": 1, "eval.chair": ["TRUTH"], "eval.image_root": "."}, "1 of 1 images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_end_in_a_sentence(case: str, tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path):
    settings, says = WRONG[case]
    common = {"model.path": str(tiny_folder("llava")), "data.path": str(pairs), "out": str(tmp_path / "run")}
    if "eval.chair" in settings:
        truth = tmp_path / "truth.json"
        truth.write_text('[{"image": "none.jpg", "objects": ["dog"]}]')
        settings = {**settings, "eval.chair": [str(truth)]}
    with pytest.raises(UserError, match=says):
        main(options({**common, **settings}))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_quantised_base_with_an_adapter_trains(tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path):
    """4 bits on a CPU, after an evaluation and a cached reference, which must not pack the weights for good."""
    pytest.importorskip("bitsandbytes")
    settings = {"model.path": str(tiny_folder("llava")), "data.path": str(pairs), "out": str(tmp_path / "run")}
    run_in_process(
        {
            **settings,
            "model.quantise": "4bit",
            "eval.every": 2,
            "eval.pope": "toy:held_out",
            "eval.questions": 2,
            "data.held_out": 0.3,
            "reference.kind": "cached",
            "model.projector.tuning": "frozen",
        }
    )
    assert all(row["grad_norm"] > 1e-4 for row in rows(tmp_path / "run", "train"))
    assert rows(tmp_path / "run", "eval")[0]["eval/margin"] == pytest.approx(0, abs=1e-5)


def test_features_are_kept_between_runs_and_change_nothing(
    tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path
):
    """Pairs 0 and 1 show one image each; mDPO's crops, which no other visit shows, are not kept."""
    kept = tmp_path / "features"
    settings = {
        "model.path": str(tiny_folder("llava")),
        "data.path": str(pairs),
        "data.limit": 2,
        "data.held_out": 0,
        "objective.recipe": "mdpo",
        "model.projector.tuning": "frozen",
    }
    losses, files = {}, {}
    for name, features in (("without", ""), ("first", str(kept)), ("second", str(kept))):
        out = tmp_path / name
        run_in_process({**settings, "model.features": features, "out": str(out)})
        losses[name] = [row["loss"] for row in rows(out, "train")]
        files[name] = {file: file.stat().st_mtime_ns for file in kept.rglob("*.safetensors")}
    assert losses["first"] == pytest.approx(losses["without"], abs=1e-5)
    assert losses["second"] == losses["first"]
    assert len(files["first"]) == 2 and files["second"] == files["first"]


def test_features_of_parts_that_train_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="the projector would train. Set --model.projector.tuning frozen"):
        run_in_process({"model.path": "toy:vlm", "data.path": "x.parquet", "model.features": str(tmp_path)})

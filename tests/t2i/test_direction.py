"""Each method moves the toy model the right way: a short check; `make prove` runs the long ones.

Pairs are rendered, not drawn: chosen shows the prompt with large shapes, rejected one with a wrong word and small shapes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.toy_loop import train
from palate.config import load_config
from palate.errors import GuardStop
from palate.readers import write_pairs
from palate.records import Media, Pair
from palate.toy.grammar import prompts, wrong_in_one_word
from palate.toy.world import Scene, render, sample_scene
from palate.training.journal import read_journal
from t2i.settings import T2IConfig

METHODS = ("dpo", "dcpo", "mapo", "sft")


def with_size(scene: Scene, size: float) -> Scene:
    return replace(scene, shapes=tuple(replace(shape, size=size) for shape in scene.shapes))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for prompt in prompts("train")[::3][:192]:
        wrong = wrong_in_one_word(prompt, rng)
        chosen = render(with_size(sample_scene(rng, prompt), 0.18))
        rejected = render(with_size(sample_scene(rng, wrong), 0.12))
        pair = Pair(prompt, Media.image(chosen), Media.image(rejected), prompt_chosen=prompt, prompt_rejected=wrong)
        rows.append(pair)
    path = tmp_path_factory.mktemp("rendered") / "pairs.parquet"
    write_pairs(rows, path)
    return path


def test_a_hundred_times_the_learning_rate_is_stopped(pairs: Path, tmp_path: Path) -> None:
    config, _ = load_config(T2IConfig, ["--config", "toy/dpo"], "test")
    with pytest.raises(GuardStop, match="guard: "):
        train(
            "toy/dpo",
            pairs,
            tmp_path / "run",
            *("--train.steps", "60", "--train.batch_size", "8", "--optim.lr", str(100 * config.optim.lr)),
            *("--eval.every", "0", "--checkpoint.every", "0"),
        )


@pytest.mark.parametrize("recipe", METHODS)
def test_training_moves_held_out_measures_the_right_way(recipe: str, pairs: Path, tmp_path: Path) -> None:
    """On prompts that training never sees: the margin grows and the pairs are told apart; SFT lowers the chosen error."""
    outcome = train(
        f"toy/{recipe}",
        pairs,
        tmp_path / "run",
        *("--train.steps", "30", "--train.batch_size", "16", "--data.held_out", "0.25", "--sample.count", "0"),
        *("--eval.every", "30", "--checkpoint.every", "0"),
        *("--train.ema_decay", "0"),  # over 30 steps the recipe's average is mostly the base
    )
    before, after = (row for row in read_journal(outcome.out / "metrics.jsonl") if row["kind"] == "eval")
    if recipe == "sft":
        assert after["eval/chosen_error"] < 0.995 * before["eval/chosen_error"]
    else:
        assert after["eval/margin"] > before["eval/margin"] + 0.5
    if recipe in (
        "dpo",
        "dcpo",
    ):  # without a reference the raw errors of two images differ by far more than training moves
        assert after["eval/accuracy"] > 0.8

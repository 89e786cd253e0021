"""The vision-language loop on the toy: rejected answers of every kind, a short training, the demo's half and its page."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from apps.demo_vlm import vlm_half
from apps.toy_vlm_loop import (
    BASE,
    Rejected,
    change_of_recall,
    held_out,
    reject,
    say,
    tell,
    things_of,
    train,
    true_answers,
)
from palate.readers.answers import open_answer_pairs
from palate.toy.vlm_truth import judge, measure


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vlm")


@pytest.mark.parametrize("kind", get_args(Rejected))
def test_pairs_of_every_kind(kind: Rejected, folder: Path) -> None:
    """What is chosen is the whole truth; what is rejected is not, and says how it was made."""
    exchanges = true_answers("train", 24, 0)
    truth = {exchange.images[0].id: things_of(exchange) for exchange in exchanges}
    pairs = open_answer_pairs(reject(kind, exchanges, folder))
    assert len(pairs) >= 6
    for pair in (pairs[index] for index in range(len(pairs))):
        things = truth[pair.images[0].id]
        assert measure([pair.chosen], [things]).recall.value == 1 and not judge(pair.chosen, things).hallucinated
        assert pair.rejected != pair.chosen and pair.made["method"]
        if kind != "bpo":  # noise may also make the model miss things
            assert judge(pair.rejected, things).hallucinated


def test_answers_on_disk_are_not_asked_again(tmp_path: Path) -> None:
    exchanges = held_out(3)
    said = say(BASE, exchanges, tmp_path / "said.jsonl", label="say")
    before = (tmp_path / "said.jsonl").read_bytes()
    assert say(BASE, exchanges, tmp_path / "said.jsonl", label="say") == said
    assert (tmp_path / "said.jsonl").read_bytes() == before


def test_training_cuts_hallucination_and_keeps_recall(tmp_path: Path) -> None:
    """16 steps at seven times the recipe's learning rate: the rate on 60 held-out pictures falls by a third or more."""
    pairs = reject("own", true_answers("train", 160, 0), tmp_path / "pairs")
    how = ("--optim.lr", "1.5e-5", "--optim.warmup", "4", "--train.steps", "16", "--train.batch_size", "16")
    outcome = train("toy/vlm_dpo", pairs, tmp_path / "run", *how, "--eval.every", "0")
    before, after = (
        tell(name, tmp_path / label, count=60, label=label)
        for name, label in ((BASE, "base"), (str(outcome.model), "trained"))
    )
    print(before.truth.answers, after.truth.answers, change_of_recall(before, after))
    assert after.truth.answers.value <= 2 / 3 * before.truth.answers.value
    assert change_of_recall(before, after).value > -0.05


def test_the_demos_half(tmp_path: Path) -> None:
    lines = vlm_half(tmp_path / "vlm", pictures=24, steps=2, held_out=12, seed=0)
    assert [line.split(":")[0] for line in lines] == [
        *("Answers that hallucinate", "Recall", "Things named", "Model", "Report")
    ]
    page = (tmp_path / "vlm" / "report.html").read_text(encoding="utf-8")
    assert page.count("<mark>") > 3 and "What they say" in page and "Resolved configuration" in page
    assert (tmp_path / "vlm" / "model" / "config.json").is_file()

"""An interrupted run that is continued ends with the bits of one that never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palate.errors import UserError
from tests.t2i.runs import assert_same, checkpoint_state, interrupted_at, rows
from tests.vlm.runs import noise_pairs, run_in_process, weights, write

WAYS: dict[str, dict[str, Any]] = {
    "full, EMA, warmup, cosine": {
        "model.language.tuning": "full",
        "model.tower.tuning": "full",
        "train.ema_decay": 0.9,
        "optim.warmup": 2,
        "optim.schedule": "cosine",
    },
    "povid stage 2, LoRA with dropout": {"objective.recipe": "povid_stage2", "model.lora.dropout": 0.3},
    "mdpo, cached, evaluated": {
        "objective.recipe": "mdpo",
        "reference.kind": "cached",
        "data.held_out": 0.3,
        "eval.every": 2,
        "optim.schedule": "linear",
    },
    "accumulation, running mean": {
        "train.batch_size": 1,
        "train.accumulation": 3,
        "objective.recipe": "custom",
        "objective.terms": [{"objective": "bco"}],
    },
    "streaming, adaptive beta": {"data.streaming": True, "objective.target_margin": 1.0},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "pairs.parquet", noise_pairs(12))


@pytest.mark.parametrize("way", WAYS)
def test_a_crashed_run_continues_to_the_same_bits(
    way: str, tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path
) -> None:
    """Five steps of 3 pairs pass the end of the first epoch of 12; the crash loses the step after checkpoint 2."""
    common = {"model.path": str(tiny_folder("llava")), "data.path": str(pairs), "train.steps": 5, "train.batch_size": 3}
    common |= WAYS[way]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_in_process({**common, "out": str(straight), "checkpoint.every": 0})
    with interrupted_at(3):
        run_in_process({**common, "out": str(broken)})
    assert [row["step"] for row in rows(broken, "train")] == [1, 2, 3]
    outcome = run_in_process({**common, "out": str(broken), "resume": "auto"})

    assert outcome.step == 5
    assert_same(weights(broken / "model"), weights(straight / "model"))
    states = [
        checkpoint_state(out / "checkpoints" / "step-00000005", tmp_path / "state.pt") for out in (broken, straight)
    ]
    assert_same(*states)
    assert any("exp_avg_sq" in name for name in states[0])
    timing = ("time", "items_per_second")
    for kind in ("train", "eval"):
        here, there = (
            [{k: v for k, v in row.items() if k not in timing} for row in rows(out, kind)] for out in (broken, straight)
        )
        assert here == there and len(here) >= (5 if kind == "train" else 0)
    assert [row["resumed"] for row in rows(broken, "event") if row["event"] == "start"] == [False, True]


def test_what_trains_and_what_does_not(tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path) -> None:
    """The reference's copies and the frozen parts are in no checkpoint; the projector beside a LoRA is, and it moves."""
    common = {"model.path": str(tiny_folder("llava")), "data.path": str(pairs), "train.steps": 2, "checkpoint.every": 1}
    run_in_process({**common, "out": str(tmp_path / "run"), "checkpoint.keep": 0})
    first, last = (
        checkpoint_state(tmp_path / "run" / "checkpoints" / f"step-0000000{step}", tmp_path / f"{step}.pt")
        for step in (1, 2)
    )
    names = [name for name in last if name.startswith("model.")]
    assert names and all("lora_" in name or "modules_to_save" in name for name in names)
    still = [name for name in names if first[name].equal(last[name])]
    assert not still, "everything that trains moves at every step"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"objective.recipe": "mdpo"}, r"objective\.recipe: checkpoint 'dpo', now 'mdpo'"),
        ({"model.projector.lr": 1e-5}, r"model\.projector\.lr: checkpoint None, now 1e-05"),
        ({"data.max_length": 300}, r"data\.max_length: checkpoint 2048, now 300"),
        ({"reference.kind": "cached"}, r"reference\.kind: checkpoint 'online', now 'cached'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    changed: dict[str, Any], named: str, tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path
) -> None:
    common = {"model.path": str(tiny_folder("llava")), "data.path": str(pairs), "out": str(tmp_path), "train.steps": 1}
    run_in_process(common)
    with pytest.raises(UserError, match=named):
        run_in_process({**common, "resume": "auto", "train.steps": 2, **changed})

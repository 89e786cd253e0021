"""One process, two and accumulation: the same draws, the same weights within float tolerance, and nobody waits for ever.

The processes are real: torchrun starts them on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.t2i.runs import largest_difference, rows, torchrun
from tests.vlm.runs import launch, noise_pairs, run_in_process, weights, write

STEADY = {"optim.eps": 1e-3, "optim.lr": 1e-3, "train.steps": 3, "checkpoint.every": 0}
"""Rounding stays rounding: Adam's 1e-8 blows a gradient that is zero but for rounding up to a whole step."""


@pytest.mark.launch
@pytest.mark.parametrize(
    "way",
    [
        {
            "objective.recipe": "povid_stage2",
            "eval.every": 3,
            "eval.pope": "toy:held_out",
            "eval.questions": 11,
            "data.held_out": 0.4,
        },
        {"objective.recipe": "mdpo", "reference.kind": "cached", "model.language.tuning": "full"},
    ],
    ids=["povid stage 2", "mdpo, cached, full"],
)
def test_one_by_four_is_two_by_two(way: dict[str, Any], tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """A batch of four whose halves are images only and text only: on two processes one sees no image at all."""
    made = noise_pairs(12)
    mixed = [pair for pair in made if pair.images] + [pair for pair in made if not pair.images]
    path = write(tmp_path / "pairs.parquet", mixed)
    common = {"model.path": str(tiny_folder("llava")), "data.path": str(path), **STEADY, **way}
    run_in_process({**common, "train.batch_size": 4, "out": str(tmp_path / "one")})
    said = launch([*torchrun(2), "-m", "vlm.train"], {**common, "train.batch_size": 2, "out": str(tmp_path / "two")})
    assert "exit status 0" in said and "on 2 process(es)" in said, said
    difference = largest_difference(weights(tmp_path / "two" / "model"), weights(tmp_path / "one" / "model"))
    print(f"two processes against one: {difference:.1e}")
    assert difference < 1e-4
    if "eval.pope" in way:
        shares = [tmp_path / run / "samples" / "step-00000003" / "toy-pope.json" for run in ("one", "two")]
        assert [json.loads(path.read_text())["counts"]["answers"] for path in shares] == [11, 11]
    for kind in ("train", "eval"):
        for mine, theirs in zip(rows(tmp_path / "two", kind), rows(tmp_path / "one", kind), strict=True):
            for name in mine.keys() & {
                "loss",
                "grad_norm",
                "margin",
                "eval/margin",
                "eval/chosen_nll",
                "eval/image_reliance",
                "eval/toy pope/length",
            }:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), (kind, mine["step"], name)

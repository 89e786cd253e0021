"""The benchmark compares equal work, shown on a tiny model; speed is its own business."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.tiny_vlm import CHATML
from vlm.loading import Loaded


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Loaded]) -> Any:
    pytest.importorskip("trl")
    from benchmarks import vlm_step

    def small(device: str, name: str = "llava") -> tuple[Any, Any]:
        loaded = tiny(name)
        if name == "qwen2_vl":  # TRL scores what a template writes after the end of a turn, too: here nothing
            image = "<|vision_start|><|image_pad|><|vision_end|>"
            loaded.processor.chat_template = CHATML.replace("IMAGE", image).replace("<|im_end|>\n", "<|im_end|>")
        return loaded.model, loaded.processor

    monkeypatch.setattr(vlm_step, "_llava", small)
    return vlm_step


def arguments(case: str) -> Namespace:
    return Namespace(device="cpu", pairs=2, steps=1, checkpointing=case == "trl", case=case)


def test_every_case_runs_on_the_same_tokens_and_weights(step: Any) -> None:
    found = {case: step._measure(arguments(case)) for case in step.CASES}
    step._check_equal_work(found)
    assert all(one["memory"] >= one["before"] > 0 and one["pairs_per_second"] > 0 for one in found.values())
    assert len(step._table(found)) == len(step.CASES) + 5
    found["cached"]["trained"] += 1
    with pytest.raises(SystemExit, match="no ratio of these"):
        step._check_equal_work(found)


def test_one_step_gives_both_the_same_gradients(step: Any) -> None:
    """From the same adapters, and with a template that both read alike, layer by layer."""
    norms = {}
    for case in ("trl", "online", "cached"):
        torch.manual_seed(0)
        model, processor = step._llava("cpu", "qwen2_vl")
        make = step._trl if case == "trl" else step._palate
        run, parameters, _ = make(arguments(case), model, processor)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(0.02 * torch.randn_like(parameter))
        run()
        norms[case] = [float(parameter.grad.norm()) for parameter in parameters]
    assert norms["online"] == pytest.approx(norms["trl"], rel=1e-3)
    assert max(norms["trl"]) > 0

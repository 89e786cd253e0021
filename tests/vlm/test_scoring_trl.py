"""The loss of TRL's DPOTrainer, run whole on the same pairs, is ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from palate.objectives import OBJECTIVES, PairScores
from tests.tiny_vlm import CHATML, picture, question
from tests.vlm.test_scoring import shake
from vlm.encoding import Encoder
from vlm.loading import Loaded
from vlm.logps import reduce
from vlm.scoring import AnswerScores
from vlm.tuning import tune

PAIRS = [
    ("how many cats?", "there are two cats", "one"),
    ("what is in the image?", "a red circle", "a blue cat and a dog"),
]


@pytest.mark.parametrize("name", ["qwen2_vl", "internvl"])
@pytest.mark.parametrize("loss", ["sigmoid", "hinge"])
def test_dpo_loss_and_gradients_are_trl_s(name: str, loss: str, tiny: Callable[..., Loaded], tmp_path: Path):
    """TRL scores what the template writes after the end of a turn too (a line break), so the template writes none here."""
    trl: Any = pytest.importorskip("trl")
    ours, theirs, start = tiny(name), tiny(name), tiny(name)
    images = "<|vision_start|><|image_pad|><|vision_end|>" if name == "qwen2_vl" else "<IMG_CONTEXT>\n"
    for loaded in (ours, theirs):
        loaded.processor.chat_template = CHATML.replace("IMAGE", images).replace("<|im_end|>\n", "<|im_end|>")
        tune(loaded, language="full", projector="full", tower="frozen")

    module = AnswerScores(ours)
    shake(module)
    encoder = Encoder(ours, max_length=400)
    batch = encoder.collate(
        [encoder.encode(question(ask), [picture(n)], [good, bad]) for n, (ask, good, bad) in enumerate(PAIRS)]
    )
    found = module(batch)
    policy, reference = reduce(found.policy, found.mask), reduce(found.reference, found.mask)
    objective = OBJECTIVES["dpo" if loss == "sigmoid" else "hinge"]
    scores = PairScores(*policy.unbind(1), *reference.unbind(1))
    value = objective.function(scores, beta=0.1).mean()
    value.backward()

    theirs.model.load_state_dict(ours.model.state_dict())
    rows = [
        {
            "images": [picture(n)],
            "prompt": [{"role": "user", "content": ask}],
            "chosen": [{"role": "assistant", "content": good}],
            "rejected": [{"role": "assistant", "content": bad}],
        }
        for n, (ask, good, bad) in enumerate(PAIRS)
    ]
    args = trl.DPOConfig(
        str(tmp_path), loss_type=[loss], beta=0.1, max_length=None, use_cpu=True, bf16=False, report_to=[],
        per_device_train_batch_size=2, gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        theirs.model, start.model, args, train_dataset=Dataset.from_list(rows), processing_class=theirs.processor
    )
    theirs_value = trainer.compute_loss(trainer.model, trainer.data_collator([dict(row) for row in rows]))
    theirs_value.backward()
    torch.testing.assert_close(value, theirs_value, atol=1e-5, rtol=1e-5)
    wanted = dict(theirs.model.named_parameters())
    largest = max(float(p.grad.norm()) for p in wanted.values() if p.grad is not None)
    assert largest > 1e-3
    for key, parameter in ours.model.named_parameters():
        if parameter.requires_grad:
            assert (
                float((parameter.grad - wanted[key].grad).norm())
                < 1e-4 * float(wanted[key].grad.norm()) + 1e-6 * largest
            )

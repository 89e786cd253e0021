"""Trained weights as folders that transformers and PEFT load by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vlm.loading import Loaded, load_model


def save_full(loaded: Loaded, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a transformers folder with its processor: the whole model, `weights` in the place of what it was loaded with.

    weights: what was trained, by the names of `AnswerScores` or of the model. All is stored in the widest type among them.
    """
    model, trained = loaded.model, _own(weights)
    held = model.state_dict()
    if any(isinstance(tensor, DTensor) or not tensor.numel() for tensor in held.values()):
        held = load_model(loaded.source).model.state_dict()  # what is sharded cannot be had on one process
    wide = torch.float32 if any(tensor.dtype == torch.float32 for tensor in trained.values()) else model.dtype
    state = {
        name: tensor.cpu().to(wide) if tensor.is_floating_point() else tensor.cpu()
        for name, tensor in {**held, **trained}.items()
    }
    with torch.device("meta"):
        whole = type(model)(model.config)
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    whole.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)


def save_lora(loaded: Loaded, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a PEFT adapter folder with the processor; `PeftModel.from_pretrained` loads it onto the base model it names.

    weights: what was trained, by the names of `AnswerScores` or of the model: the adapter's, and those of parts that
    trained in full beside it (PEFT's `modules_to_save`).
    """
    loaded.model.save_pretrained(folder, state_dict=_own(weights))
    loaded.processor.save_pretrained(folder)


def _own(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the policy's weights by the model's own names."""
    return {
        name.removeprefix("policy."): tensor for name, tensor in weights.items() if not name.startswith("reference.")
    }

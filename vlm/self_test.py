"""A check on the user's own model and first batch: may answers share their prompt?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palate.errors import UserError
from vlm.batch import Batch
from vlm.loading import Loaded
from vlm.logps import token_logps
from vlm.scoring import AnswerScores

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Mean absolute difference of a token's log-probability that rounding explains, nats, by the model's type."""


@dataclass(frozen=True)
class Verdict:
    """Whether answers may share one row with their prompt, and why."""

    shared: bool
    reason: str
    """One sentence for the log."""
    difference: float | None = None
    """Mean absolute difference of a token's log-probability between the two ways, nats; None where not measured."""


@torch.no_grad()
def may_share(loaded: Loaded, batch: Batch) -> Verdict:
    """Return which layout to use: one row a prompt with all its answers, or one row an answer.

    Separate rows are compared with what transformers itself computes of a prompt with images and of one without, shared
    rows with separate ones. `batch` is on the model's device. Call it before the model is sharded.

    Raises UserError where separate rows differ from transformers' own forward: the scores would be wrong.
    """
    tolerance = TOLERANCE.get(loaded.model.dtype, 5e-2)
    if getattr(loaded.model, "is_quantized", False):
        tolerance = max(tolerance, 1e-1)
    with _quiet(loaded):
        separate = _scores(loaded, batch, shared=False)
        for index in _samples(batch):
            own = plain_logps(loaded, batch, index)
            apart = _mean_difference(own, separate[index], batch.mask[index])
            if not apart <= tolerance:
                raise UserError(
                    f"palate's forward of {loaded.source} differs from transformers' own by {apart:.2g} nats a token "
                    f"(tolerance {tolerance:.0e}). Try another attention (sdpa, eager) or dtype, or another version of "
                    "transformers."
                )
        why_not = _why_not(loaded, batch)
        if why_not:
            return Verdict(False, f"Each answer gets its own copy of the prompt: {why_not}.")
        apart = _mean_difference(_scores(loaded, batch, shared=True), separate, batch.mask)
    if not apart <= tolerance:
        return Verdict(
            False,
            f"Each answer gets its own copy of the prompt: on the first batch, sharing it moves log-probabilities by "
            f"{apart:.2g} nats a token (tolerance {tolerance:.0e}).",
            apart,
        )
    return Verdict(True, f"Answers share their prompt: log-probabilities agree to {apart:.1g} nats a token.", apart)


def plain_logps(loaded: Loaded, batch: Batch, index: int) -> Tensor:
    """Return transformers' own log-probabilities `(A, T)` of one prompt's answers: a forward for each, without padding."""
    family, model = loaded.family, loaded.model
    images = [family.each(batch.pixels, batch.image_tokens)[image] for image in batch.images[index]]
    pixels = family.join(images) if images else {}
    prompt = batch.prompt[index, : batch.prompt_lengths[index]]
    made = torch.zeros_like(batch.answers[index], dtype=torch.float32)
    for row, (answer, length) in enumerate(zip(batch.answers[index], batch.answer_lengths[index].tolist())):
        ids = torch.cat([prompt, answer[:length]])[None]
        places = torch.arange(ids.shape[1], device=ids.device)
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            **family.own_inputs(ids, places[None] >= len(prompt), pixels.get("image_grid_thw")),
            **pixels,
        }
        logits = model(**inputs, logits_to_keep=places[len(prompt) - 1 : -1], use_cache=False).logits[0]
        made[row, :length] = token_logps(logits, answer[:length])
    return made


def _why_not(loaded: Loaded, batch: Batch) -> str | None:
    if batch.answers.shape[1] < 2:
        return "there is only one"
    if loaded.attention not in ("sdpa", "eager"):
        return f"{loaded.attention} takes no 4-D mask (sdpa does)"
    width = int((batch.prompt_lengths + batch.answer_lengths.sum(1)).max())
    return loaded.family.why_not_shared(width)


def _samples(batch: Batch) -> list[int]:
    """Return the first prompt with images and the first without, as far as there are."""
    kinds = [bool(images) for images in batch.images]
    return [kinds.index(kind) for kind in (True, False) if kind in kinds]


def _scores(loaded: Loaded, batch: Batch, *, shared: bool) -> Tensor:
    scores = AnswerScores(loaded, with_reference=False, shared=shared)(batch).policy
    assert scores is not None
    return scores


def _mean_difference(one: Tensor, other: Tensor, mask: Tensor) -> float:
    return float((one - other)[mask].abs().mean())


@contextmanager
def _quiet(loaded: Loaded) -> Iterator[None]:
    """Leave out dropout, and compute in the model's precision."""
    model = loaded.model
    trained = model.training
    # bitsandbytes packs 4-bit weights for good at the first forward in evaluation mode on a CPU, and packed ones give no
    # gradients.
    if not getattr(model, "is_quantized", False):
        model.eval()
    with torch.autocast(model.device.type, torch.bfloat16) if model.dtype == torch.bfloat16 else nullcontext():
        yield
    model.train(trained)

"""Where each token of a batch goes: one row a prompt with all of its answers, or one row an answer.

`B` prompts, `A` answers, `P` and `T` tokens of the longest of each, `L` of the longest row, `R` rows of positions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlm.batch import Batch
from vlm.families.base import Family


class Rows(NamedTuple):
    """What the model is called with."""

    inputs: dict[str, Any]
    """Token ids, masks and positions, by the names of transformers."""
    images: tuple[int, ...]
    """Which distinct image stands at each image place of the rows, in order."""
    at: Tensor
    """(B, A, T) index into the rows laid end to end of the token that predicts each answer token."""


def shared_rows(batch: Batch, family: Family, *, additive: torch.dtype | None = None) -> Rows:
    """Return B rows [prompt | answer 1 | ... | answer A]; an answer sees the prompt and itself, and counts on from it.

    additive: the type of a mask that is added to attention scores (eager attention); None makes a bool one (sdpa).
    """
    answers, mask = batch.answers, batch.mask
    (B, A, T), P, device = answers.shape, batch.prompt.shape[1], answers.device
    in_prompt = torch.arange(P, device=device) < batch.prompt_lengths[:, None]
    there = torch.cat([in_prompt, mask.flatten(1)], dim=1)
    steps = torch.arange(T, device=device).repeat(A)
    place = torch.cat([torch.arange(P, device=device).expand(B, P), batch.prompt_lengths[:, None] + steps], dim=1)
    owner = torch.arange(1, A + 1, device=device).repeat_interleave(T)
    segment = torch.cat([owner.new_zeros(P), owner]).expand(B, -1).masked_fill(~there, -1)
    rotary = torch.cat(
        [batch.positions, (batch.next_position[:, None] + steps).expand(len(batch.positions), -1, -1)], -1
    )
    blocks = torch.cat([batch.blocks, batch.blocks.new_full((B, A * T), -1)], dim=1).masked_fill(~there, -1)
    ids = torch.cat([batch.prompt, answers.flatten(1)], dim=1)

    # What is padding moves to the end of each row, and the part that is padding in every row goes.
    order = (~there).byte().argsort(dim=1, stable=True)[:, : int(there.sum(1).max())]
    ids, segment, blocks, place = (tensor.gather(1, order) for tensor in (ids, segment, blocks, place))
    rotary = rotary.gather(2, order.expand(len(rotary), -1, -1))

    full, sliding = _seen(segment, blocks, place, family.window)
    starts = batch.prompt_lengths[:, None] + batch.answer_lengths.cumsum(1) - batch.answer_lengths
    at = _predictors(batch, starts) + torch.arange(B, device=device)[:, None, None] * ids.shape[1]
    inputs = {
        "input_ids": ids,
        "attention_mask": family.masks(
            _as_mask(full, additive), sliding if sliding is None else _as_mask(sliding, additive)
        ),
        "position_ids": rotary[0] if len(rotary) == 1 else rotary,
    }
    return Rows(inputs, tuple(image for images in batch.images for image in images), at)


def separate_rows(batch: Batch, family: Family) -> Rows:
    """Return B x A rows [prompt | answer] with a 2-D mask: what transformers itself would be given."""
    answers = batch.answers.flatten(0, 1)
    A, P, device = batch.answers.shape[1], batch.prompt.shape[1], answers.device
    lengths = batch.prompt_lengths.repeat_interleave(A)
    in_prompt = torch.arange(P, device=device) < lengths[:, None]
    there = torch.cat([in_prompt, batch.mask.flatten(0, 1)], dim=1)
    ids = torch.cat([batch.prompt.repeat_interleave(A, 0), answers], dim=1)
    order = (~there).byte().argsort(dim=1, stable=True)[:, : int(there.sum(1).max())]
    ids, there = ids.gather(1, order), there.gather(1, order)
    L = ids.shape[1]
    in_answer = torch.arange(L, device=device) >= lengths[:, None]
    starts = batch.prompt_lengths[:, None].expand(-1, A)
    rows = torch.arange(len(ids), device=device).view(-1, A)
    images = tuple(image for images in batch.images for _ in range(A) for image in images)
    grids = batch.pixels["image_grid_thw"][list(images)] if "image_grid_thw" in batch.pixels and images else None
    inputs = {"input_ids": ids, "attention_mask": there.long(), **family.own_inputs(ids, in_answer, grids)}
    return Rows(inputs, images, _predictors(batch, starts) + rows[..., None] * L)


def _predictors(batch: Batch, starts: Tensor) -> Tensor:
    """Return the column of the token before each answer token, (B, A, T). The first one's is the prompt's last."""
    steps = torch.arange(batch.answers.shape[-1], device=starts.device)
    last = batch.prompt_lengths[:, None, None] - 1
    # Clamped where there is padding: those places are never read.
    return torch.where(steps == 0, last, torch.minimum(steps, batch.answer_lengths[..., None]) + starts[..., None] - 1)


def _seen(segment: Tensor, blocks: Tensor, place: Tensor, window: int | None) -> tuple[Tensor, Tensor | None]:
    """Return which tokens each token sees, (B, L, L) bool, in full and within a window, where there is one.

    segment: (B, L), 0 in the prompt, the answer's number in answers, -1 in padding (which sees itself, so that no row of
    the softmax is empty). blocks: (B, L) as in `Batch`. place: (B, L) of each token in its own sequence.
    """
    mine, other = segment[:, :, None], segment[:, None, :]
    before = torch.ones(mine.shape[1], mine.shape[1], dtype=torch.bool, device=segment.device).tril()
    causal = before & ((other == mine) | (other == 0) & (mine > 0))
    together = (blocks[:, None, :] == blocks[:, :, None]) & (blocks[:, None, :] >= 0)
    if window is None:
        return causal | together, None
    return causal | together, causal & (place[:, :, None] - place[:, None, :] < window) | together


def _as_mask(visible: Tensor, additive: torch.dtype | None) -> Tensor:
    """Return a 4-D mask (B, 1, L, L) of what each token may see."""
    visible = visible[:, None]
    if additive is None:
        return visible
    return torch.zeros_like(visible, dtype=additive).masked_fill(~visible, torch.finfo(additive).min)

"""Log-probabilities of tokens: from logits, in chunks, and reduced to scores of answers `(B, A)`."""

from __future__ import annotations

from collections.abc import Callable
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from palate.objectives.token_weights import token_weighted_score

Reduction = Literal["sum", "mean", "weighted"]
Head = Callable[[Tensor], Tensor]
"""Hidden states (N, width) -> logits (N, V)."""


def token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log softmax(logits) at `tokens`, nats: `(..., V)` and `(...)` -> `(...)`, in float32."""
    logits = logits.float()
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)


class Scored(NamedTuple):
    """What the head says at N places. Each is (N,) in float32, or None where it was not asked for."""

    logps: Tensor
    targets: Tensor | None
    kl: Tensor | None
    argmax: Tensor | None


def score_places(
    head: Head,
    hidden: Tensor,
    tokens: Tensor,
    *,
    targets: Tensor | None = None,
    reference: tuple[Head, Tensor] | None = None,
    with_argmax: bool = False,
    chunks: int = 8,
) -> Scored:
    """Return log-probabilities at N places without ever holding the logits of more than N / chunks of them.

    hidden: (N, width) states; tokens, targets: (N,) ids, of targets negative ones are skipped (0). reference: head and
    hidden states of the model that KL(reference || policy) is taken of. Each chunk's logits are made again in the
    backward. The number of chunks does not depend on N, so that sharded heads are gathered equally often on every rank.
    """

    def score(
        hidden: Tensor, tokens: Tensor, targets: Tensor | None, other: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        logits = head(hidden).float()
        norm = logits.logsumexp(-1)
        logps = logits.gather(-1, tokens[:, None])[:, 0] - norm
        at_targets = kl = argmax = None
        if targets is not None:
            at_targets = (logits.gather(-1, targets.clamp(min=0)[:, None])[:, 0] - norm).masked_fill(targets < 0, 0.0)
        if reference is not None and other is not None:
            with torch.no_grad():
                log_ref = reference[0](other).float().log_softmax(-1)
            kl = (log_ref.exp() * (log_ref - (logits - norm[:, None]))).sum(-1)
        if with_argmax:
            argmax = logits.detach().argmax(-1)
        return logps, at_targets, kl, argmax

    def split(tensor: Tensor | None) -> list[Tensor | None]:
        return [None] * chunks if tensor is None else list(tensor.tensor_split(chunks))

    parts = []
    for pieces in zip(split(hidden), split(tokens), split(targets), split(None if reference is None else reference[1])):
        if torch.is_grad_enabled():
            parts.append(checkpoint(score, *pieces, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(score(*pieces))  # type: ignore[arg-type]
    return Scored(*(None if column[0] is None else torch.cat(column) for column in zip(*parts)))  # type: ignore[arg-type]


def reduce(
    logps: Tensor, mask: Tensor, how: Reduction = "sum", *, changed: Tensor | None = None, gamma: float = 5.0
) -> Tensor:
    """Return one score per answer, `(B, A, T)` -> `(B, A)`: nats ("sum"), or nats per token ("mean", "weighted").

    "weighted" is RLHF-V's dense_dpo (2312.00849): tokens that `changed` marks (see `changed_tokens`) count gamma times.
    """
    if how == "weighted":
        if changed is None:
            raise TypeError("A weighted reduction reads `changed`.")
        return token_weighted_score(logps, mask, changed, gamma)
    total = logps.masked_fill(~mask, 0.0).sum(-1)
    return total if how == "sum" else total / mask.sum(-1)


def changed_tokens(answers: Tensor, lengths: Tensor) -> Tensor:
    """Return where the two answers of each pair differ, `(B, 2, T)` ids and `(B, 2)` lengths -> `(B, 2, T)` bool.

    Tokens outside the matching blocks of the two sequences (difflib) were changed. Source: 2312.00849, section 3.2, which
    takes the segments that a person corrected.
    """
    changed = torch.zeros_like(answers, dtype=torch.bool)
    for pair, ends, marks in zip(answers.tolist(), lengths.tolist(), changed):
        one, other = (tokens[:end] for tokens, end in zip(pair, ends))
        for tag, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
            if tag != "equal":
                marks[0, a:b] = True
                marks[1, c:d] = True
    return changed

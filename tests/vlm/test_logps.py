"""The arithmetic of log-probabilities: chunks, reductions, and the tokens that a correction changed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vlm.logps import changed_tokens, reduce, score_places, token_logps


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_token_logps_by_hand():
    """Logits (0, ln 3): probabilities 1/4 and 3/4."""
    logits = torch.tensor([[0.0, math.log(3)]] * 2)
    assert token_logps(logits, torch.tensor([0, 1])).tolist() == pytest.approx([math.log(0.25), math.log(0.75)])


@pytest.mark.parametrize("chunks", [1, 3, 8, 40])
@pytest.mark.parametrize("N", [1, 7, 21])
def test_chunks_are_exact_and_never_hold_all_logits(chunks: int, N: int):
    """Values and gradients of hidden states and head equal those of the full logits; no call sees more than its share."""
    head = nn.Linear(6, 11)
    hidden, other = draw(N, 6).requires_grad_(), draw(N, 6, seed=1)
    tokens = torch.arange(N) % 11
    targets = (tokens + 3) % 11
    targets[0] = -1
    weights = draw(3, N, seed=2)
    seen: list[int] = []

    def counted(states: Tensor) -> Tensor:
        seen.append(len(states))
        return head(states)

    found = score_places(
        counted,
        hidden,
        tokens,
        targets=targets,
        reference=(head, other),
        with_argmax=True,
        chunks=chunks,
    )
    assert found.targets is not None and found.kl is not None
    leaves = [hidden, *head.parameters()]
    ours = torch.autograd.grad(torch.stack([found.logps, found.targets, found.kl]).mul(weights).sum(), leaves)
    assert max(seen) == math.ceil(N / chunks) and len(seen) == 2 * chunks, "once forward, once in the backward"

    logits = head(hidden)
    logps = logits.log_softmax(-1)
    rows = torch.arange(N)
    at_targets = logps[rows, targets].masked_fill(targets < 0, 0.0)
    with torch.no_grad():
        then = head(other).log_softmax(-1)
    kl = (then.exp() * (then - logps)).sum(-1)
    full = torch.autograd.grad(torch.stack([logps[rows, tokens], at_targets, kl]).mul(weights).sum(), leaves)
    torch.testing.assert_close(found.logps, logps[rows, tokens])
    torch.testing.assert_close(found.targets, at_targets)
    torch.testing.assert_close(found.kl, kl)
    assert torch.equal(found.argmax, logits.argmax(-1))
    for one, same in zip(ours, full):
        torch.testing.assert_close(one, same, atol=1e-5, rtol=1e-5)


def test_the_head_is_called_equally_often_whatever_the_length():
    """Sharded heads are gathered at each call: ranks with fewer tokens must not call less often."""
    for N in (2, 100):
        calls: list[int] = []
        head = lambda states, calls=calls: calls.append(1) or states
        with torch.no_grad():
            score_places(head, draw(N, 5), torch.zeros(N, dtype=torch.long), chunks=8)
        assert len(calls) == 8


def test_reductions_by_hand():
    """Log-probabilities -1 -2 (-9 is padding): sum -3, mean -1.5; the second changed: (-1 - 5 * 2) / 6 = -11 / 6."""
    logps = torch.tensor([[[-1.0, -2.0, -9.0]]])
    mask = torch.tensor([[[True, True, False]]])
    changed = torch.tensor([[[False, True, False]]])
    assert reduce(logps, mask).item() == -3.0
    assert reduce(logps, mask, "mean").item() == -1.5
    assert reduce(logps, mask, "weighted", changed=changed).item() == pytest.approx(-11 / 6)
    with pytest.raises(TypeError):
        reduce(logps, mask, "weighted")


def test_changed_tokens_by_hand():
    """`a red cat sits` against `a blue big cat`: red and sits were changed, as were blue and big."""
    one, other = [1, 2, 3, 4], [1, 5, 6, 3]
    changed = changed_tokens(torch.tensor([[one, other]]), torch.tensor([[4, 4]]))
    assert changed.tolist() == [[[False, True, False, True], [False, True, True, False]]]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_what_is_not_changed_is_common(one: list[int], other: list[int]):
    """The unchanged tokens of both answers are the same, in order; padding is never marked; equal answers are unchanged."""
    width = max(len(one), len(other)) + 1
    answers = torch.tensor([[tokens + [0] * (width - len(tokens)) for tokens in (one, other)]])
    changed = changed_tokens(answers, torch.tensor([[len(one), len(other)]]))[0]
    kept = [[t for t, c in zip(tokens, marks.tolist()) if not c] for tokens, marks in zip((one, other), changed)]
    assert kept[0] == kept[1]
    assert not changed[0, len(one) :].any() and not changed[1, len(other) :].any()
    assert changed.any() == (one != other)

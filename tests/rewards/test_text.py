"""Tokenizers: two libraries agree on CLIP's words, and long texts keep their end mark and are told."""

from __future__ import annotations

import open_clip
import pytest
import torch

from rewards.text import OpenClipTokenizer, TransformersTokenizer, clip_tokenizer

PROMPTS = ["a red circle", "café ☕ at night, 4k!! don't", "日本の猫", "x", "an  astronaut\nriding"]


@pytest.fixture(scope="module")
def tokenizers() -> tuple[OpenClipTokenizer, TransformersTokenizer]:
    return OpenClipTokenizer(open_clip.SimpleTokenizer(), 77), TransformersTokenizer(clip_tokenizer(), 77)


def test_both_libraries_give_the_same_ids(tokenizers) -> None:
    theirs, ours = (tokenizer(PROMPTS) for tokenizer in tokenizers)
    for row, length in enumerate(ours.mask.sum(1).tolist()):
        assert torch.equal(theirs.ids[row, :length], ours.ids[row, :length])
        assert int(ours.ids[row, length - 1]) == 49407


@pytest.mark.parametrize("words", [74, 75, 76, 200])
def test_truncation_keeps_the_end_mark_and_is_told(tokenizers, words) -> None:
    """ "word" is one token; with start and end 77 fit, so 75 words do and 76 do not."""
    for tokenizer in tokenizers:
        found = tokenizer(["word " * words, "a"])
        assert found.truncated.tolist() == [words > 75, False]
        last = found.ids[0].argmax()
        assert int(found.ids[0, last]) == 49407 and int(last) == min(words, 75) + 1


def test_an_end_mark_at_a_fixed_place_tells_nothing() -> None:
    """Such a tokenizer (open_clip's "clips" mode) would seem to cut every prompt."""

    def fixed(prompts, context_length):
        ids = torch.zeros(len(prompts), context_length, dtype=torch.long)
        ids[:, -1] = 101
        return ids

    assert not OpenClipTokenizer(fixed, 8)(["a", "b"]).truncated.any()

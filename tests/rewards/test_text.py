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


def test_only_prompts_that_fill_the_length_are_read_twice() -> None:
    """Padding at the last two places says that nothing was cut."""
    lengths: list[tuple[int, int]] = []
    simple = open_clip.SimpleTokenizer()

    def counted(prompts, context_length):
        lengths.append((len(prompts), context_length))
        return simple(prompts, context_length)

    tokenizer = OpenClipTokenizer(counted, 8)
    lengths.clear()
    assert tokenizer(["a", "word " * 6, "word " * 7]).truncated.tolist() == [False, False, True]
    assert tokenizer(["a", "b"]).truncated.tolist() == [False, False]
    assert lengths == [(3, 8), (2, 9), (2, 8)]


def test_a_tokenizer_that_pads_with_the_end_mark_tells_too() -> None:
    simple = open_clip.SimpleTokenizer()

    def padded(prompts, context_length):
        ids = simple(prompts, context_length)
        return torch.where(ids == 0, simple.eot_token_id, ids)

    found = OpenClipTokenizer(padded, 8)(["a", "word " * 5, "word " * 6, "word " * 7])
    assert found.truncated.tolist() == [False, False, False, True]

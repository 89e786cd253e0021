"""Battles that are rendered, for learning and judging scorers."""

from __future__ import annotations

import numpy as np
import pytest

from palate.errors import UserError
from palate.toy.battles import battles
from palate.toy.grammar import prompts
from palate.toy.taste import taste


def test_a_battle_is_a_function_of_its_number() -> None:
    few, more = battles(5, seed=3), battles(9, seed=3)
    for (prompt, *images), (same, *others) in zip(few, more, strict=False):
        assert prompt == same and [i.tobytes() for i in images] == [i.tobytes() for i in others]
    assert battles(5, seed=4)[0][1].tobytes() != few[0][1].tobytes()


def test_every_prompt_has_its_turn_before_any_has_two() -> None:
    known = prompts("held_out")
    found = [prompt for prompt, *_ in battles(len(known) + 3, split="held_out")]
    assert sorted(found[: len(known)]) == sorted(known) and len(set(found[len(known) :])) == 3


def test_images_differ_in_how_well_they_answer_and_in_how_they_look() -> None:
    scores = [taste(prompt, image) for prompt, *images in battles(60) for image in images]
    assert 0.2 < np.mean([s.semantic > 0.95 for s in scores]) < 0.6
    assert np.std([s.semantic for s in scores]) > 0.15 and np.std([s.visual for s in scores]) > 0.1


def test_none_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1 battle"):
        battles(0)

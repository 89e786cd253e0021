"""The world of the miniature vision-language model: scenes, splits, sentences, and what is in a picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.toy.scenes import (
    COUNTS,
    GRID,
    PARTNERS,
    THINGS,
    absent_partners,
    contents,
    is_held_out,
    make_scene,
    name,
    question,
    sentence,
    things_in,
)
from palate.toy.vlm_truth import judge
from palate.toy.world import render

subsets = st.sets(st.sampled_from(THINGS), max_size=5)
RED_CIRCLE, GREEN_SQUARE = ("red", "circle"), ("green", "square")


def test_partners_are_mutual_and_half_of_the_things_have_one() -> None:
    assert len(THINGS) == len(set(THINGS)) == 15
    assert len(PARTNERS) == 8
    assert all(PARTNERS[PARTNERS[thing]] == thing != PARTNERS[thing] for thing in PARTNERS)


def test_what_is_in_a_picture_is_seen_exactly() -> None:
    for split in ("train", "held_out"):
        for index in range(50):
            scene = make_scene(split, index, seed=7)
            assert things_in(render(scene)) == contents(scene)


def test_a_scene_is_a_function_of_split_index_and_seed() -> None:
    assert make_scene("train", 3, 1) == make_scene("train", 3, 1)
    others = [
        make_scene("train", 3, 1),
        make_scene("train", 4, 1),
        make_scene("train", 3, 2),
        make_scene("held_out", 3, 1),
    ]
    assert len({scene.background for scene in others}) == 4


def test_every_thing_fills_a_cell_of_its_own() -> None:
    for index in range(200):
        scene = make_scene("train", index)
        cells = {(int(shape.x * GRID), int(shape.y * GRID)) for shape in scene.shapes}
        assert len(cells) == len(scene.shapes)
        for shape in scene.shapes:
            for at in (shape.x, shape.y):
                assert int((at - shape.size) * GRID + 1e-9) == int(at * GRID) == int((at + shape.size) * GRID - 1e-9)


def test_no_set_of_things_is_in_both_splits() -> None:
    train, held_out = ({contents(make_scene(split, k)) for k in range(800)} for split in ("train", "held_out"))
    assert all(len(things) == 1 for things in train & held_out)
    assert not any(is_held_out(things) for things in train)


def test_both_splits_have_all_lengths_and_all_things() -> None:
    """The number of things is drawn before the split is looked at: 600 draws lie within four standard errors."""
    for split in ("train", "held_out"):
        seen = [contents(make_scene(split, k)) for k in range(600)]
        shares = np.bincount([len(things) for things in seen], minlength=6)[1:] / len(seen)
        assert shares == pytest.approx(COUNTS, abs=4 * 0.5 / 600**0.5)
        assert {thing for things in seen for thing in things} == set(THINGS)


def test_sentences() -> None:
    assert sentence([]) == "Nothing."
    assert sentence([RED_CIRCLE]) == "A red circle."
    assert sentence([GREEN_SQUARE, RED_CIRCLE]) == "A red circle and a green square."
    assert sentence([GREEN_SQUARE, ("blue", "circle"), RED_CIRCLE]) == "A red circle, a green square and a blue circle."
    assert question(RED_CIRCLE) == "Is there a red circle in the picture?"


@settings(max_examples=60)
@given(subsets, st.randoms())
def test_a_sentence_says_what_is_there_whatever_the_order(things: set, random: object) -> None:
    shuffled = sorted(things, key=name)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    ordered = [thing for thing in THINGS if thing in things]
    assert sentence(shuffled) == sentence(ordered)
    assert [mention.thing for mention in judge(sentence(shuffled), ordered).mentions] == ordered


def test_absent_partners() -> None:
    assert absent_partners([RED_CIRCLE]) == (GREEN_SQUARE,)
    assert absent_partners([RED_CIRCLE, GREEN_SQUARE]) == ()
    assert absent_partners([("blue", "circle")]) == ()

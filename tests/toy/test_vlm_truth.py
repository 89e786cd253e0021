"""The exact truth of a description: mentions, hallucinations, recall, length, and their intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.errors import UserError
from palate.statistics import share
from palate.toy.scenes import THINGS, sentence
from palate.toy.vlm_truth import judge, measure, recall_change

RED_CIRCLE, BLUE_SQUARE, GREEN_SQUARE = ("red", "circle"), ("blue", "square"), ("green", "square")


def test_a_verdict_by_hand() -> None:
    """Two things are there; one of them is named (twice), and one thing is named that is not there."""
    verdict = judge(
        "There are red circles, a Blue  square, a green square and a red circle.", [RED_CIRCLE, BLUE_SQUARE]
    )
    assert [mention.thing for mention in verdict.mentions] == [
        RED_CIRCLE,
        GREEN_SQUARE,
        RED_CIRCLE,
    ]  # two spaces: no thing
    assert [mention.thing for mention in verdict.hallucinated] == [GREEN_SQUARE]
    assert verdict.found == 1


def test_marked_pieces() -> None:
    verdict = judge("A red circle and a green square.", [RED_CIRCLE])
    assert verdict.marked() == [("A red circle and a ", False), ("green square", True), (".", False)]
    assert judge("", [RED_CIRCLE]).marked() == []


@given(st.text(alphabet="redcirlgnsqua ,.", max_size=60), st.sets(st.sampled_from(THINGS), max_size=3))
def test_pieces_join_to_the_answer(answer: str, things: set) -> None:
    assert "".join(text for text, _ in judge(answer, tuple(things)).marked()) == answer


def test_measures_by_hand() -> None:
    """Four answers, of which two hallucinate; 6 mentions, 3 of them false; 3 of 5 things named; 6/4 things an answer."""
    answers = [
        "A red circle.",
        "A red circle and a blue square.",
        "A red circle, a green square and a blue square.",
        "",
    ]
    pictures = [[RED_CIRCLE], [RED_CIRCLE], [RED_CIRCLE], [BLUE_SQUARE, GREEN_SQUARE]]
    truth = measure(answers, pictures)
    assert truth.answers.value == pytest.approx(2 / 4)
    assert truth.mentions.value == pytest.approx(3 / 6)
    assert truth.recall.value == pytest.approx(3 / 5)
    assert truth.length.value == pytest.approx(6 / 4)
    assert truth.mentions.n == 6 and truth.mentions.clusters == 3
    assert truth.answers.low == share([0, 1, 1, 0]).low


def test_true_sentences_are_true() -> None:
    pictures = [THINGS[k : k + 3] for k in range(12)]
    truth = measure([sentence(things) for things in pictures], pictures)
    assert (truth.answers.value, truth.mentions.value, truth.recall.value, truth.length.value) == (0, 0, 1, 3)


def test_silence_has_no_mentions() -> None:
    truth = measure(["", "Nothing."], [[RED_CIRCLE], [BLUE_SQUARE]])
    assert truth.mentions.n == 0 and truth.recall.value == 0 and truth.length.value == 0


def test_a_missing_answer_is_refused() -> None:
    with pytest.raises(UserError, match="1 for 2 pictures"):
        measure(["A red circle."], [[RED_CIRCLE], [BLUE_SQUARE]])


def test_the_change_of_recall_by_hand() -> None:
    """Of three things the second answers name one more and one less: (+1 - 1 + 0) / 3; two pictures are the clusters."""
    pictures = [[RED_CIRCLE, BLUE_SQUARE], [GREEN_SQUARE]]
    before, after = ["A red circle.", "A green square."], ["A blue square.", "A green square and a red circle."]
    change = recall_change(before, after, pictures)
    assert change.value == pytest.approx(0) and change.n == 3 and change.clusters == 2
    assert recall_change(before, ["", ""], pictures).value == pytest.approx(-2 / 3)

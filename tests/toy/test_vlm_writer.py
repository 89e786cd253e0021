"""The toy's writer of wrong descriptions, and the controls."""

from __future__ import annotations

from collections import Counter

import pytest

from apps.toy_vlm_loop import held_out, things_of, true_answers
from apps.toy_writer import CHANGES, Control, How, ToyWriter, changed
from palate.conversations import Exchange
from palate.toy.scenes import PARTNERS, THINGS, absent_partners, contents, make_scene, sentence
from palate.toy.vlm_truth import judge
from vlm.answering import Ask
from vlm.rejected.writing import Written

ANSWERS: list[Exchange] = true_answers("train", 60, 0)


def named(text: str) -> set[tuple[str, str]]:
    return {mention.thing for mention in judge(text, ()).mentions}


def test_true_answers_are_true_and_held_out_ones_are_others() -> None:
    assert [things_of(exchange) for exchange in ANSWERS] == [contents(make_scene("train", k, 0)) for k in range(60)]
    assert not {e.images[0].id for e in ANSWERS} & {e.images[0].id for e in held_out(60)}


@pytest.mark.parametrize("how", CHANGES)
def test_what_is_written_is_wrong_and_in_the_fixed_order(how: How) -> None:
    for exchange in ANSWERS:
        true, text = set(things_of(exchange)), changed(exchange.answer, how, seed=1)
        assert named(text) - true and text == sentence(named(text))  # type: ignore[arg-type]
        if how in ("swap", "rewrite"):
            assert len(named(text)) == len(true)
        if how == "swap":
            assert len(named(text) - true) == 1
        if how == "random":
            assert named(text) > true and len(named(text)) == len(true) + 1


def test_a_partner_is_named_where_one_is_absent() -> None:
    for exchange in ANSWERS:
        things = things_of(exchange)
        new = named(changed(exchange.answer, "partner", seed=0)) - set(things)
        assert len(new) == 1
        if tempting := absent_partners(things):
            assert new <= set(tempting)


def test_random_things_are_drawn_evenly() -> None:
    """Of 15 things, 8 have a partner; among the absent things of one picture each is as likely: 400 seeds, 14 things."""
    new = Counter(next(iter(named(changed("A red circle.", "random", s)) - {("red", "circle")})) for s in range(400))
    assert set(new) == set(THINGS) - {("red", "circle")}
    assert max(new.values()) < 400 / 14 + 5 * (400 / 14) ** 0.5
    assert new[PARTNERS["red", "circle"]] < 400 / 14 + 5 * (400 / 14) ** 0.5


def test_the_writer_finds_the_answer_in_the_builders_prompt() -> None:
    """POVID's builder shows the true answer among its instructions; what comes back is the change of that answer."""
    builder = Written("povid-inject", ToyWriter("partner", seed=3), mode="description")
    for number, made in builder.build(ANSWERS[:10]):
        assert made.rejected == changed(ANSWERS[number].answer, "partner", seed=3)
        assert not made.failure and not made.unfit


def test_changes_depend_on_seed_and_text_alone() -> None:
    asks = [Ask(str(k), exchange.prompt, exchange.images) for k, exchange in enumerate(ANSWERS[:5])]
    texts = [exchange.answer for exchange in ANSWERS]
    assert [changed(text, "swap", 0) for text in texts] != [changed(text, "swap", 1) for text in texts]
    made = {number: made.rejected for number, made in Control("swap", 0).build(ANSWERS)}
    assert made == {number: changed(text, "swap", 0) for number, text in enumerate(texts)}
    assert [number for number, _ in ToyWriter("swap").answer(asks)] == [0, 1, 2, 3, 4]

"""Messages, exchanges and pairs of answers refuse what cannot be, and keep their identity through a swap."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from palate.conversations import IMAGE, AnswerPair, Exchange, Message, answer_id
from palate.errors import UserError
from palate.records import Media

RED, BLUE = (Media.image(Image.new("RGB", (4, 4), colour)) for colour in ("red", "blue"))
ASK = Message.user("What is it?", 1)


def pair(**changes) -> AnswerPair:
    return AnswerPair(**{"prompt": (ASK,), "images": (RED,), "chosen": "red", "rejected": "blue", **changes})


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10).filter(str.strip)
images = st.sampled_from([RED, BLUE])
pairs = st.builds(
    lambda text, first, other, chosen, rejected, p, gap: pair(
        prompt=(Message("system", ("Be brief.",)), Message("user", (text, IMAGE))),
        images=(first,),
        rejected_images=other,
        chosen=chosen,
        rejected=rejected,
        p_chosen=p,
        score_gap=gap,
    ),
    texts,
    images,
    st.none() | st.tuples(images),
    texts,
    texts,
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.none() | st.floats(-5, 5),
)


@settings(max_examples=30, deadline=None)
@given(pairs)
def test_a_swap_says_the_same_from_the_other_side(one):
    other = one.swap()
    assert other.swap() == one and other.id == one.id
    assert (other.chosen, other.rejected, other.p_chosen) == (one.rejected, one.chosen, 1 - one.p_chosen)
    assert other.score_gap == (None if one.score_gap is None else -one.score_gap)
    if one.rejected_images is not None:
        assert (other.images, other.rejected_images) == (one.rejected_images, one.images)
    assert pickle.loads(pickle.dumps(one)) == one


def test_ids_tell_apart_what_differs_and_nothing_else():
    ids = {
        pair().id,
        pair(images=(BLUE,)).id,
        pair(chosen="green").id,
        pair(rejected="red", chosen="red").id,
        pair(prompt=(Message.user("What is that?", 1),)).id,
        pair(prompt=(Message("user", ("What is it?", IMAGE)),)).id,
        pair(prompt=(Message.user("Hi"), Message("assistant", ("What is it?",)), ASK)).id,
        pair(rejected_images=(BLUE,)).id,
        pair(prompt=(Message.user("\0image"),), images=()).id,
    }
    assert len(ids) == 9
    assert pair(p_chosen=0.5, score_gap=3.0, source="x", meta={"a": 1}).id == pair().id
    assert Exchange((ASK,), (RED,), "red").id != Exchange((ASK,), (RED,), "blue").id


def test_messages_become_chat_templates_and_texts():
    message = Message("user", ("Before", IMAGE, "after"))
    parts = [{"type": "text", "text": "Before"}, {"type": "image"}, {"type": "text", "text": "after"}]
    assert message.template() == {"role": "user", "content": parts}
    assert message.text == "Before\nafter" and message.places == 1 and Message.user("x", 2).places == 2


def test_what_was_done_to_an_answer_stays_with_it():
    known = Exchange((ASK,), (RED,), "red", source="toy", meta={"id": 7})
    made = known.against("blue", {"method": "swap", "tokens": 1}, p_chosen=0.9)
    assert made.made == {"method": "swap", "tokens": 1} and made.swap().made == {}
    assert made.meta == {"id": 7, "made": {answer_id("blue"): {"method": "swap", "tokens": 1}}}
    assert (made.source, made.p_chosen, made.exchange.answer, made.question) == ("toy", 0.9, "red", "What is it?")
    assert AnswerPair.ask("What is it?", [RED], "red", "blue") == pair()


REFUSED = {
    "has 1 places": {"images": ()},
    "AnswerPair.rejected_images are 2": {"rejected_images": (RED, BLUE)},
    "AnswerPair.chosen is empty": {"chosen": " "},
    "AnswerPair.rejected must be a str": {"rejected": None},
    "lone surrogate": {"chosen": "\ud800"},
    "from 0 to 1": {"p_chosen": 1.5},
    "score_gap must be finite": {"score_gap": float("nan")},
    "does not end with a message of the user": {"prompt": ()},
    "sequence of messages": {"prompt": "What is it?"},
    "expected a Message": {"prompt": ("What is it?",)},
    "expected an image": {"images": (Media.of_text("red"),)},
    "sequence of Media": {"images": RED},
    "not its first": {"prompt": (ASK, Message("system", ("x",)), Message.user("y"))},
    "must be a mapping": {"meta": []},
}


@pytest.mark.parametrize("says", REFUSED)
def test_pairs_refuse(says):
    with pytest.raises(UserError, match=says):
        pair(**REFUSED[says])


@pytest.mark.parametrize(
    ("role", "parts", "says"),
    [
        ("robot", ("x",), "did you mean|Known: assistant"),
        ("user", (), "is empty"),
        ("user", "x", "sequence of texts"),
        ("user", (" ",), r"parts\[0\] is empty"),
        ("user", (7,), r"parts\[0\] must be a str"),
        ("assistant", (IMAGE, "x"), "only the user's may"),
    ],
)
def test_messages_refuse(role, parts, says):
    with pytest.raises(UserError, match=says):
        Message(role, parts)

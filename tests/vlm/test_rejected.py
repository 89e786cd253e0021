"""Rejected answers: swaps by hand, the model's own under noise, a writer's; what is kept, resumed and counted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palate.conversations import Exchange, Message
from palate.endpoint import ChatClient
from palate.errors import UserError
from palate.readers.answers import open_answer_pairs
from palate.records import Media
from tests.chat_server import Server, completion, running
from tests.tiny_vlm import picture, save_tiny_vlm
from vlm.answering import Answer, Ask, EndpointAnswerer
from vlm.generate import LocalAnswerer
from vlm.loading import Loaded, load_model
from vlm.rejected import METHODS, Made, Swapped, build_pairs, swap
from vlm.rejected.building import words_changed
from vlm.rejected.lexicon import Lexicon, english, plural, read_lexicon
from vlm.rejected.sampling import Noised, Weakened
from vlm.rejected.writing import PROMPTS, Written, read_reply

LISTS = {
    "object": {"animals": ["dog", "ox|oxen"], "seats": ["sofa/couch", "armchair"]},
    "count": {"few": ["two", "three"]},
    "relation": {"depth": ["in front of", "behind"]},
    "verdict": {"answers": ["yes", "no"]},
}
SMALL = Lexicon(LISTS)  # type: ignore[arg-type]


# --- swaps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("Two dogs lie behind a sofa.", "Three oxen lie in front of an armchair."),
        ("An armchair.", "A sofa."),
        ("The dog's couch, the dogs' couches", "The ox's armchair, the oxen' armchairs"),
        ("Yes, the dog. No?", "No, the ox. No?"),  # a verdict only at the beginning
        ("In front of it", "Behind it"),
        ("In front, of it", "In front, of it"),  # a comma is no space
        ("A dog and an ox", "A dog and an ox"),  # each is named, so neither may stand for the other
        ("A dog and an ox on a sofa", "A dog and an ox on an armchair"),
        ("A cat.", "A cat."),
    ],
)
def test_swaps_by_hand(text: str, swapped: str) -> None:
    """At rate 1 every listed word becomes the other of its group of two."""
    said, changes = swap(text, rate=1.0, lexicon=SMALL)
    assert said == swapped and bool(changes) == (said != text)
    assert all(text[change.start : change.end] == change.was for change in changes)


def test_a_word_changes_everywhere_or_nowhere() -> None:
    for seed in range(20):
        text, changes = swap("A dog, a red car, the dog and dogs by a car.", seed=seed, rate=0.5)
        assert len(re.findall(r"\bdogs?\b", text)) in (0, 3) and text.count("car") in (0, 2)
        assert changes


def test_the_rate_and_at_least_one() -> None:
    """Of 12 words, each with probability .25: 3 on average, and never none."""
    things = "dog, car, pizza, laptop, river, guitar, tree, kitchen, helmet, backpack, eagle, spoon"
    counts = [len(swap(things, seed=seed, rate=0.25)[1]) for seed in range(300)]
    assert min(counts) == 1 and sum(counts) / 300 == pytest.approx(3 + 0.75**12, abs=0.25)
    assert all(len(swap(things, seed=seed, rate=1e-9)[1]) == 1 for seed in range(20))


def test_kinds_and_names_choose() -> None:
    text = "Two red dogs behind a tree."
    for kind, word in (("count", "Two"), ("attribute", "red"), ("object", "dogs"), ("relation", "behind")):
        changes = swap(text, rate=1.0, kinds=[kind])[1]  # type: ignore[list-item]
        assert changes[0].was.split()[-1] == word and all(change.kind == kind for change in changes)
    assert len({swap(text, name=name)[0] for name in "abcdefgh"}) > 2
    assert swap(text, name="a") == swap(text, name="a")


@given(st.text(max_size=80), st.integers(0, 5))
def test_swaps_are_where_they_say(text: str, seed: int) -> None:
    said, changes = swap(text + " two dogs", seed=seed)
    rebuilt = text + " two dogs"
    for change in reversed(changes):
        rebuilt = rebuilt[: change.start] + change.now + rebuilt[change.end :]
    assert rebuilt == said and changes


def test_the_lists_that_ship() -> None:
    """Every phrase stands once (or `Lexicon` refuses), and no word can become itself or another name of itself."""
    lexicon = english()
    for text in ("a grey couch", "an elderly man", "a small cup", "a burger"):
        for seed in range(10):
            said = set(swap(text, seed=seed, rate=1.0)[0].split()[1:])
            assert not said & {"gray", "grey", "sofa", "couch", "old", "elderly", "tiny", "mug", "hamburger"}
    assert lexicon.longest >= 3


@pytest.mark.parametrize(
    ("one", "many"), [("dog", "dogs"), ("bench", "benches"), ("toy", "toys"), ("ferry", "ferries")]
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


def test_lists_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps(LISTS))
    assert swap("two dogs", rate=1.0, lexicon=read_lexicon(path))[0] == "three oxen"
    assert read_lexicon(path).digest == SMALL.digest != english().digest
    for lists, said in (
        ({"object": {"a": ["dog"]}}, "needs two words"),
        ({"object": {"a": ["dog", "cat"], "b": ["dog", "ox"]}}, "stands in the lists already"),
        ({"things": {"a": ["dog", "cat"]}}, "Unknown kind"),
        ({"object": ["dog", "cat"]}, "have the form"),
        ({"object": {"a": ["dog", 3]}}, "have the form"),
        ({}, "have the form"),
    ):
        path.write_text(json.dumps(lists))
        with pytest.raises(UserError, match=said):
            read_lexicon(path)
    for how in ({"rate": 0.0}, {"kinds": []}, {"kinds": ["objects"]}):
        with pytest.raises(UserError):
            Swapped(**how)  # type: ignore[arg-type]


def test_words_changed_by_hand() -> None:
    """Of five words, "a cat" and "sits" are old, "on mats" new; an appended sentence counts whole."""
    assert words_changed("a cat sits here", "a cat sits on mats") == 2
    assert words_changed("a b", "a b") == 0 and words_changed("a b", "a b c d e") == 3


# --- building --------------------------------------------------------------------------------------------------------


def exchanges(count: int = 6, images: int = 1) -> list[Exchange]:
    answers = ["There are two dogs on a sofa.", "A red car in front of a tree.", "Hm."]
    return [
        Exchange(
            (Message.user("Describe the image." if k % 2 else "what is in the image?", images),),
            tuple(Media.image(picture(k)) for _ in range(images)),
            f"{answers[k % 3]}{'' if k % 3 == 2 else f' Picture {k}.'}",
            source="test",
            meta={"id": k},
        )
        for k in range(count)
    ]


class Scripted:
    """Makes what its table says, counts what it was asked, and dies after so many."""

    method = "scripted"

    def __init__(self, table: dict[str, Made], dies_after: int = 10**9, **settings: Any) -> None:
        self.table, self.dies_after, self.settings, self.asked = table, dies_after, settings, []

    def build(self, some: Sequence[Exchange]) -> Iterator[tuple[int, Made]]:
        for number in reversed(range(len(some))):  # any order
            if len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append(some[number].meta["id"])
            yield number, self.table.get(some[number].answer, Made(f"not {some[number].answer}", {"by": "script"}))


def test_pairs_and_what_was_done_to_them(tmp_path: Path) -> None:
    built = build_pairs(Scripted({}, seed=5), exchanges(4), tmp_path / "pairs.parquet")
    assert built.pairs == 4 and built.failures == {}
    assert built.words_changed.value == 1 and built.rejected_length.value == built.chosen_length.value + 1
    pairs = open_answer_pairs(tmp_path / "pairs.parquet")
    for pair, exchange in zip((pairs[k] for k in range(4)), exchanges(4), strict=True):
        assert (pair.chosen, pair.rejected) == (exchange.answer, f"not {exchange.answer}")
        assert pair.prompt == exchange.prompt and pair.images[0].id == exchange.images[0].id
        assert pair.made == {"method": "scripted", "seed": 5, "by": "script", "words_changed": 1}
        assert pair.source == "test+scripted" and pair.meta["id"] == exchange.meta["id"]


def test_failures_are_counted_and_only_those_of_the_moment_are_tried_again(tmp_path: Path) -> None:
    first, second, third = exchanges(3)
    table = {first.answer: Made(failure="offline"), second.answer: Made(f" {second.answer} "), third.answer: Made(" ")}
    more = [*exchanges(3), exchanges(4)[3]]
    built = build_pairs(Scripted(table), more, tmp_path / "p.parquet")
    assert built.pairs == 1
    assert built.failures == {
        "offline": 1,
        "the rejected answer is the true one": 1,
        "the rejected answer is empty": 1,
    }
    again = Scripted({})
    assert build_pairs(again, more, tmp_path / "p.parquet").pairs == 2 and again.asked == [0]
    assert "2 pairs" in str(built_again := build_pairs(Scripted({}), more, tmp_path / "p.parquet")).splitlines()[0]
    assert "1 failed: the rejected answer is empty" in str(built_again)


def test_nothing_built_is_an_error(tmp_path: Path) -> None:
    table = {e.answer: Made(failure="offline") for e in exchanges(2)}
    with pytest.raises(UserError, match="Nothing was built. 2 failed: offline."):
        build_pairs(Scripted(table), exchanges(2), tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()


def test_a_killed_build_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_pairs(Scripted({}, dies_after=2), exchanges(6), tmp_path / "p.parquet")
    with (tmp_path / "p.parquet.rows.jsonl").open("a") as file:
        file.write('{"key": "torn')
    rest = Scripted({})
    build_pairs(rest, exchanges(6), tmp_path / "p.parquet")
    assert sorted(rest.asked) == [0, 1, 2, 3]
    build_pairs(Scripted({}), exchanges(6), tmp_path / "whole.parquet")
    pairs, whole = (open_answer_pairs(tmp_path / name) for name in ("p.parquet", "whole.parquet"))
    assert [pairs[k] for k in range(6)] == [whole[k] for k in range(6)]
    other = Scripted({}, seed=1)  # another setting makes all anew
    build_pairs(other, exchanges(6), tmp_path / "p.parquet")
    assert len(other.asked) == 6


def test_equal_exchanges_are_made_once(tmp_path: Path) -> None:
    builder = Scripted({})
    assert build_pairs(builder, [exchanges(1)[0]] * 3, tmp_path / "p.parquet").pairs == 3
    assert builder.asked == [0]


def test_a_row_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    broken = Exchange(exchanges(1)[0].prompt, (Media.image(tmp_path / "none.png"),), "A dog.")
    built = build_pairs(Swapped(), [*exchanges(2), broken], tmp_path / "p.parquet")
    (reason,) = built.failures
    assert built.pairs == 2 and "none.png" in reason


def test_swapped_pairs_say_what_was_swapped(tmp_path: Path) -> None:
    built = build_pairs(Swapped(seed=3, rate=1.0), exchanges(3), tmp_path / "p.parquet")
    assert built.pairs == 2 and built.failures == {"no listed word stands in the answer": 1}
    pair = open_answer_pairs(tmp_path / "p.parquet")[0]
    assert pair.made["method"] == "swap" and pair.made["rate"] == 1.0
    said = pair.chosen
    for swapped in pair.made["swaps"]:
        said = said.replace(swapped["was"], swapped["now"])
    assert said == pair.rejected != pair.chosen


# --- the model's own -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load_model(str(save_tiny_vlm("llava", tmp_path_factory.mktemp("llava"))))


@pytest.fixture
def wordy(llava: Loaded) -> Iterator[Loaded]:
    """The model with a bias towards the end token, so that its random answers end, now and then."""
    end = llava.processor.tokenizer.eos_token_id
    head = llava.model.get_output_embeddings()
    biased = torch.nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        biased.weight.copy_(head.weight)
        biased.bias.zero_()
        biased.bias[end] = 6.0
    llava.model.set_output_embeddings(biased)
    yield llava
    llava.model.set_output_embeddings(head)


def made(builder: Any, some: Sequence[Exchange]) -> list[Made]:
    found = dict(builder.build(some))
    return [found[k] for k in range(len(some))]


def test_weakened_answers_are_the_models_under_noise(wordy: Loaded) -> None:
    """Seeded, whatever the batch; an answer that does not end is unfit, and so is a prompt without an image."""
    some = [*exchanges(5), *exchanges(1, images=0)]
    how: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 40, "seed": 1}
    found = made(Weakened(wordy, batch_size=4, **how), some)
    assert found == made(Weakened(wordy, batch_size=1, **how), some)
    assert found[5].unfit == "the prompt has no image to make worse"
    ended = [m for m in found[:5] if not m.unfit]
    assert any(m.rejected for m in ended) and all(m.details["tokens"] for m in ended)
    plain = LocalAnswerer(wordy, temperature=1.0, max_new_tokens=40, seed=1)
    clean = [answer.text for _, answer in plain.answer([Ask(e.id, e.prompt, e.images) for e in some[:5]])]
    assert clean != [m.rejected for m in found[:5]]
    short = made(Weakened(wordy, **{**how, "max_new_tokens": 1}), some[:5])
    assert any(m.unfit == "the answer did not end within 1 tokens" for m in short)
    settings = Weakened(wordy).settings
    assert settings["corruption"] == {"kind": "noise", "step": 900} and settings["temperature"] == 0.2


def test_noised_tokens_are_the_likeliest_beside_the_true_ones(llava: Loaded) -> None:
    """Against transformers' own forward on prompt and answer, with the noised values put in by hand."""
    from vlm.corruption import Corruption, corrupt_values

    builder = Noised(llava, batch_size=4, seed=2)
    some = exchanges(3)
    found = made(builder, some)
    assert found == made(Noised(llava, batch_size=1, seed=2), some)
    for exchange, one in zip(some, found, strict=True):
        pictures = [image.decode() for image in exchange.images]
        encoded = builder.encoder.encode(exchange.prompt, pictures, [exchange.answer])
        noised = corrupt_values(
            encoded, Corruption("noise", step=500), seed=2, content=exchange.id, visit="povid-noise"
        )
        ids = torch.cat([encoded.prompt, encoded.answers[0]])[None]
        with torch.no_grad():
            logits = llava.model(input_ids=ids, pixel_values=noised.images[0]["pixel_values"]).logits[0]
        likeliest = logits[len(encoded.prompt) - 1 : -2].argmax(-1)
        true = encoded.answers[0][:-1]
        assert one.rejected == llava.processor.tokenizer.decode(likeliest, skip_special_tokens=True).strip()
        assert one.details == {"tokens": len(true), "tokens_changed": int((likeliest != true).sum())}


def test_noise_fails_row_by_row(llava: Loaded, tmp_path: Path) -> None:
    long = Exchange(exchanges(1)[0].prompt, exchanges(1)[0].images, "a dog " * 600)
    some = [exchanges(1)[0], long, exchanges(1, images=0)[0]]
    found = made(Noised(llava, batch_size=3), some)
    assert not found[0].failure and "longer than the model's context" in found[1].unfit and "no image" in found[2].unfit


# --- a writer --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with running() as state:
        yield state


def test_a_writer_behind_an_endpoint(server: Server, tmp_path: Path) -> None:
    """It is given the question and the true answer and no image; a 500 is tried again, a cut reply and a refusal are
    unfit, and a second run asks only for what failed."""
    server.script = [
        (500, {}, b""),
        (200, {}, completion("Here it is: <answer>Three cats on a bench.</answer> Anything else?")),
        (200, {}, completion("<answer>A cut", finish_reason="length")),
        (200, {}, completion("I’m sorry, but I cannot do that.")),
        (400, {}, b'{"error": {"message": "too long"}}'),
    ]
    client = ChatClient(server.url, "writer", workers=1, sleep=lambda seconds: None)
    builder = Written("povid-inject", EndpointAnswerer(client, temperature=0.7, seed=1))
    built = build_pairs(builder, exchanges(4), tmp_path / "p.parquet")
    assert built.pairs == 1
    assert built.failures == {
        "the writer's reply was cut; allow more new tokens": 1,
        "the writer refused": 1,
        "status 400: too long": 1,
    }
    pair = open_answer_pairs(tmp_path / "p.parquet")[0]
    assert pair.rejected == "Three cats on a bench."
    assert pair.made["method"] == "povid-inject" and pair.made["model"] == "writer" and pair.made["task"] == "qa"
    asked = server.seen[0]["messages"][-1]["content"]
    assert isinstance(asked, str) and exchanges(1)[0].answer in asked and "what is in the image?" in asked
    before = len(server.seen)
    assert build_pairs(builder, exchanges(4), tmp_path / "p.parquet").pairs == 2
    assert len(server.seen) == before + 1


def test_the_question_chooses_the_prompt() -> None:
    class Silent:
        def __init__(self) -> None:
            self.settings, self.asked = {"model": "none"}, []

        def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer]]:
            self.asked += [ask.messages[0].text for ask in asks]
            yield from ((k, Answer("x", finish="stop")) for k in range(len(asks)))

    for mode, kinds in (("auto", ["qa", "description"]), ("qa", ["qa"] * 2), ("description", ["description"] * 2)):
        writer = Silent()
        builder = Written("bpo-inject", writer, mode=mode)  # type: ignore[arg-type]
        assert [m.details["task"] for m in made(builder, exchanges(2))] == kinds
        for text, kind in zip(writer.asked, kinds, strict=True):
            assert text.startswith(PROMPTS["bpo-inject", kind][:60])  # type: ignore[index]
            assert "{" not in text
    with pytest.raises(UserError, match="did you mean 'description'"):
        Written("bpo-inject", Silent(), mode="descriptions")  # type: ignore[arg-type]


def test_braces_in_an_answer_are_text(server: Server) -> None:
    some = [Exchange((Message.user("What is {answer}?"),), (), "It says {shape} {x}.")]
    client = ChatClient(server.url, "writer", sleep=lambda seconds: None)
    made(Written("bpo-inject", EndpointAnswerer(client)), some)
    asked = server.seen[0]["messages"][-1]["content"]
    assert "Question: What is {answer}?" in asked and "It says {shape} {x}." in asked


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<answer>A cat.</answer>", "A cat."),
        ("Sure!\n<answer>\nA cat.\nA dog.\n</answer>\nDone.", "A cat.\nA dog."),
        ("<answer>A cat.", "A cat."),
        ('"A cat."', "A cat."),
        ("A cat.", "A cat."),
        ("", ""),
    ],
)
def test_replies_are_read(reply: str, answer: str) -> None:
    assert read_reply(reply) == answer


def test_a_local_writer(wordy: Loaded) -> None:
    builder = Written("bpo-inject", LocalAnswerer(wordy, max_new_tokens=30, temperature=1.0))
    found = made(builder, exchanges(4))
    assert all(m.rejected or m.unfit for m in found)
    assert {"weights", "temperature", "prompts", "mode"} <= set(builder.settings)


def test_every_method_is_in_the_commands_table() -> None:
    from apps.build import MAKERS

    assert set(MAKERS) == set(METHODS)

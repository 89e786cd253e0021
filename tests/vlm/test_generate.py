"""Answers: what transformers generates by itself, whatever the batch; draws by hand; files that go on after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from palate.conversations import Message
from palate.endpoint import Chat, ChatClient, Reply
from palate.errors import UserError
from palate.records import Media
from tests.tiny_vlm import FAMILIES, picture, question, save_tiny_vlm
from vlm.answering import Answer, Ask, EndpointAnswerer, answer_file
from vlm.corruption import Corruption
from vlm.generate import LocalAnswerer, _Draw
from vlm.loading import Loaded, load_model


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def one(name: str) -> Loaded:
        return load_model(str(save_tiny_vlm(name, tmp_path_factory.mktemp(name))))

    return one


def asks(count: int = 4) -> list[Ask]:
    """Return questions of different lengths: one image, two images, or none."""
    texts = ["what is in the image?", "how many cats are there near the window?", "describe the picture, please.", "?"]
    images = [1, 2, 1, 0]
    return [
        Ask(
            f"q{k}",
            (Message.user(texts[k % 4], images[k % 4]),),
            tuple(Media.image(picture(10 * k + n, (40, 30) if n else (30, 40))) for n in range(images[k % 4])),
        )
        for k in range(count)
    ]


def texts(answerer: LocalAnswerer, some: Sequence[Ask]) -> list[Answer]:
    found = dict(answerer.answer(some))
    return [found[k] for k in range(len(some))]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_gives_what_transformers_gives_one_by_one(name: str, load: Any) -> None:
    """Greedy answers in a batch, padded on the left, against a processor call and `generate` for each alone."""
    loaded = load(name)
    answers = texts(LocalAnswerer(loaded, batch_size=3, max_new_tokens=6), asks(3))
    for ask, answer in zip(asks(3), answers, strict=True):
        text = LocalAnswerer(loaded).encoder.prompt_text(ask.messages)
        twice = loaded.processor.tokenizer.bos_token or "\0"
        inputs = loaded.processor(
            text=[text],
            images=[[image.decode() for image in ask.images]],
            return_tensors="pt",
            add_special_tokens=not text.startswith(twice),
        )
        made = loaded.model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer.text == loaded.processor.tokenizer.decode(made, skip_special_tokens=True).strip()
        assert answer.tokens == len(made)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_draws_do_not_depend_on_the_batch(name: str, load: Any) -> None:
    loaded = load(name)
    how: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3}
    together = texts(LocalAnswerer(loaded, batch_size=8, **how), asks(4))
    assert together == texts(LocalAnswerer(loaded, batch_size=1, **how), asks(4))
    assert together[::-1] == texts(LocalAnswerer(loaded, batch_size=3, **how), asks(4)[::-1])
    assert together != texts(LocalAnswerer(loaded, batch_size=8, **{**how, "seed": 4}), asks(4))
    assert together != texts(LocalAnswerer(loaded, batch_size=8, **{**how, "temperature": 0.0}), asks(4))


def test_a_batch_without_any_image(load: Any) -> None:
    some = [Ask("a", tuple(question(images=0))), Ask("b", tuple(question("?", images=0)))]
    answers = texts(LocalAnswerer(load("llava"), max_new_tokens=4), some)
    assert all(answer.text for answer in answers)


def test_one_token_is_drawn_by_its_probability() -> None:
    """softmax((0, ln 3) / 1) = (1/4, 3/4): draws under 1/4 take the first token. At temperature 1/2 it is (1/10, 9/10),
    and a token of probability 0 is never taken."""
    names = [f"row {k}" for k in range(4000)]
    scores = torch.tensor([[0.0, float(torch.tensor(3.0).log()), -torch.inf]]).expand(4000, -1)
    for temperature, share in ((1.0, 0.25), (0.5, 0.1)):
        left = _Draw(names, 0, temperature, 5)(torch.zeros(4000, 7), scores)
        assert (left.isfinite().sum(1) == 1).all() and not left[:, 2].isfinite().any()
        assert left[:, 0].isfinite().float().mean().item() == pytest.approx(share, abs=0.02)
    again = _Draw(names, 0, 1.0, 4)(torch.zeros(4000, 7), scores)  # another step, another draw
    assert not torch.equal(again, _Draw(names, 0, 1.0, 5)(torch.zeros(4000, 7), scores))


def test_an_answer_ends_at_its_end_of_turn(load: Any) -> None:
    """With the language model's head made to prefer the end token, nothing is said, in one token."""
    loaded = load("smolvlm")
    answerer = LocalAnswerer(loaded, max_new_tokens=5)
    plain = answerer._config
    end = answerer.encoder.end
    assert end in plain.eos_token_id
    answers = texts(answerer, asks(2))
    assert all(a.finish == "length" and a.tokens == 5 for a in answers)
    bias = torch.nn.Linear(loaded.model.config.text_config.hidden_size, loaded.model.vocab_size)
    with torch.no_grad():
        bias.weight.zero_()
        bias.bias.zero_()
        bias.bias[end] = 9
    head = loaded.model.get_output_embeddings()
    try:
        loaded.model.set_output_embeddings(bias)
        assert texts(answerer, asks(2)) == [Answer(text="", finish="stop", tokens=1)] * 2
    finally:
        loaded.model.set_output_embeddings(head)


def test_the_models_own_settings_do_not_leak_in(load: Any) -> None:
    """A repetition penalty and sampling in generation_config.json change nothing."""
    loaded = load("llava")
    before = texts(LocalAnswerer(loaded, max_new_tokens=6), asks(2))
    own = loaded.model.generation_config
    try:
        own.repetition_penalty, own.do_sample, own.temperature, own.top_k = 5.0, True, 0.3, 2
        assert texts(LocalAnswerer(loaded, max_new_tokens=6), asks(2)) == before
    finally:
        own.repetition_penalty, own.do_sample, own.temperature, own.top_k = None, None, None, None


def test_a_worse_image_gives_another_answer_and_the_model_stays_in_its_mode(load: Any) -> None:
    loaded = load("llava")
    loaded.model.train()
    loaded.model.model.vision_tower.eval()
    try:
        clean = texts(LocalAnswerer(loaded, max_new_tokens=8), asks(3))
        for corruption in (Corruption("noise", step=900), Corruption("crop"), Corruption("blank")):
            assert texts(LocalAnswerer(loaded, max_new_tokens=8, corruption=corruption), asks(3)) != clean
        assert loaded.model.training and not loaded.model.model.vision_tower.training
    finally:
        loaded.model.eval()


def test_an_unreadable_image_fails_alone(load: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    bad = Ask("bad", tuple(question()), (Media.image(tmp_path / "broken.png"),))
    some = [asks()[0], bad, asks()[2]]
    answers = texts(LocalAnswerer(load("llava"), batch_size=2, max_new_tokens=3), some)
    assert [bool(a.failure) for a in answers] == [False, True, False] and "broken.png" in answers[1].failure


def test_settings_that_cannot_be(load: Any) -> None:
    for how in ({"batch_size": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}):
        with pytest.raises(UserError, match="at least"):
            LocalAnswerer(load("llava"), **how)


# --- files -----------------------------------------------------------------------------------------------------------


class Echo:
    """Answers with the question's id, and counts; fails where it is told to, and dies after so many."""

    def __init__(self, fails: Mapping[str, str] = {}, dies_after: int | None = None, **settings: Any) -> None:
        self.settings, self.fails, self.left, self.asked = settings, fails, dies_after, []

    def answer(self, some: Sequence[Ask]) -> Iterator[tuple[int, Answer]]:
        for number, ask in enumerate(some):
            if self.left is not None and len(self.asked) >= self.left:
                raise KeyboardInterrupt
            self.asked.append(ask.id)
            yield number, Answer(f"re {ask.id}", self.fails.get(ask.id, ""), "stop", 2)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_file(Echo(dies_after=2), asks(5), path)
    with path.open("a") as file:
        file.write('{"id": "q2", "answ')  # the line that the kill tore
    rest = Echo()
    rows = answer_file(rest, asks(5), path)
    assert rest.asked == ["q2", "q3", "q4"]
    whole = tmp_path / "whole.jsonl"
    assert rows == answer_file(Echo(), asks(5), whole)
    assert path.read_text() == whole.read_text()
    assert answer_file(Echo(dies_after=0), asks(5), path) == rows


def test_failures_are_rows_and_are_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first = answer_file(Echo(fails={"q1": "no luck"}), asks(3), path)
    assert first[1]["failure"] == "no luck" and "answer" not in first[1]
    again = Echo()
    rows = answer_file(again, asks(3), path)
    assert again.asked == ["q1"] and rows[1]["answer"] == "re q1"
    assert len(path.read_text().splitlines()) == 3


def test_a_file_made_otherwise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer_file(Echo(weights="a"), asks(3), path)
    moved = [Ask(a.id, a.messages, tuple(Media.image(picture(99)) for _ in a.images)) for a in asks(3)]
    others = [
        (Echo(weights="b"), asks(3)),
        (Echo(weights="a"), moved),
        (Echo(weights="a"), [Ask("q0", (Message.user("?", 1),), asks()[0].images)]),
    ]
    for answerer, some in others:
        with pytest.raises(UserError, match="answers question q0 already, with other"):
            answer_file(answerer, some, path)
        assert not answerer.asked
    assert len(answer_file(Echo(weights="a"), asks(5), path)) == 5  # more questions are welcome


def test_two_questions_of_one_id_and_other_peoples_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="same id"):
        answer_file(Echo(), [asks()[0], asks()[0]], tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"question_id": 1, "text": "someone else\'s"}\n')
    with pytest.raises(UserError, match="line 1, is no row that palate wrote"):
        answer_file(Echo(), asks(1), tmp_path / "b.jsonl")
    assert "someone" in (tmp_path / "b.jsonl").read_text()
    with pytest.raises(UserError, match="cannot be written"):
        answer_file(Echo(), asks(1), tmp_path / "b.jsonl" / "c.jsonl")


def test_a_local_model_resumes_exactly(load: Any, tmp_path: Path) -> None:
    how: dict[str, Any] = {"max_new_tokens": 5, "temperature": 1.0, "seed": 1}
    whole = answer_file(LocalAnswerer(load("llava"), batch_size=4, **how), asks(4), tmp_path / "a.jsonl")
    answer_file(LocalAnswerer(load("llava"), batch_size=4, **how), asks(2), tmp_path / "b.jsonl")
    assert answer_file(LocalAnswerer(load("llava"), batch_size=1, **how), asks(4), tmp_path / "b.jsonl") == whole


def test_an_endpoint_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chats carry the messages, the images and, above temperature 0, a seed for each; failures come back."""
    sent: list[Chat] = []

    def stream(self: ChatClient, chats: Sequence[Chat]) -> Iterator[tuple[int, Reply]]:
        sent.extend(chats)
        yield from reversed([(k, Reply(f" re {k}\n", finish="stop")) for k in range(len(chats) - 1)])
        yield len(chats) - 1, Reply(failure="status 500")

    monkeypatch.setattr(ChatClient, "stream", stream)
    client = ChatClient("http://localhost/v1", "tiny")
    rows = answer_file(EndpointAnswerer(client, max_tokens=7, temperature=0.5, seed=2), asks(3), tmp_path / "a.jsonl")
    assert [row.get("answer") for row in rows] == ["re 0", "re 1", None] and rows[2]["failure"] == "status 500"
    assert [c.messages for c in sent] == [a.messages for a in asks(3)] and [len(c.images) for c in sent] == [1, 2, 1]
    assert len({c.seed for c in sent}) == 3 and {c.max_tokens for c in sent} == {7}
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])["id"] == "q1"  # as they arrived

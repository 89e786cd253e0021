"""Tokens of prompts and answers: exactly those of the template, with a right end, and cut only where that is safe."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from palate.conversations import Message
from palate.errors import UserError
from tests.tiny_vlm import CHATML, FAMILIES, VICUNA, picture, question
from tests.vlm.batches import TURNS, mixed_items
from vlm.encoding import Encoder
from vlm.loading import Loaded

CHATS = [name for name in FAMILIES if name != "paligemma"]
ENDS = {
    "llava": "</s>",
    "llava_next": "</s>",
    "idefics3": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
    "gemma3": "<end_of_turn>",
    "paligemma": "<eos>",
}


class Counting:
    """A processor that counts its calls."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.calls = processor, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.processor(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["processor"], name)


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("messages", [TURNS, question(images=1), question(images=0)], ids=["turns", "one", "text"])
def test_tokens_are_those_of_the_templated_conversation(
    name: str, messages: list[Message], tiny: Callable[..., Loaded]
):
    """Prompt and answer together are what transformers makes of the whole conversation, up to the end-of-turn token.

    LLaVA's template writes none, but a space: there the answer ends with `</s>`, as LLaVA was trained.
    """
    loaded = tiny(name)
    answer = "two dogs and one cat"
    images = [picture(0)] * sum(message.places for message in messages)
    made = Encoder(loaded, max_length=400).encode(messages, images, [answer, "one"])
    turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    chat = [*(message.template() for message in messages), turn]
    pictures = iter(images)
    for message in chat:
        for part in message["content"]:
            if part["type"] == "image":
                part["image"] = next(pictures)
    whole = loaded.processor.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0]
    ours = [*made.prompt.tolist(), *made.answers[0].tolist()]
    tokenizer = loaded.processor.tokenizer
    assert tokenizer.decode(ours[-1]) == ENDS.get(name, "<|im_end|>") and made.complete == (True, True)
    body = len(ours) - 1 if name.startswith("llava") else len(ours)
    assert ours[:body] == list(whole[:body])
    assert tokenizer.decode(made.answers[0][:-1]).strip() == answer


def test_paligemma_s_tokens_are_its_processor_s(tiny: Callable[..., Loaded]):
    """`processor(text, images, suffix=answer)` is how PaliGemma's own recipe makes a training row."""
    loaded = tiny("paligemma")
    made = Encoder(loaded, max_length=400).encode(question("how many?"), [picture(0)], ["two dogs"])
    own = loaded.processor(text="<image>how many?", images=picture(0), suffix="two dogs", return_tensors="pt")
    assert [*made.prompt.tolist(), *made.answers[0].tolist()] == own["input_ids"][0].tolist()
    assert len(made.prompt) == int((own["token_type_ids"] == 0).sum())
    text = Encoder(loaded, max_length=400).encode(question("how many?", 0), [], ["two dogs"])
    assert loaded.processor.tokenizer.decode(text.prompt) == "<bos>how many?\n"


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "paligemma"])
def test_the_end_is_scored_where_padding_is_the_end_token(name: str, tiny: Callable[..., Loaded]):
    loaded = tiny(name)
    tokenizer = loaded.processor.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    encoder = Encoder(loaded, max_length=400)
    item = encoder.encode(question(), [picture(0)], ["one", "two dogs and one cat"])
    batch = encoder.collate([item])
    assert [answer[-1] for answer in item.answers] == [tokenizer.eos_token_id] * 2
    ends = (batch.answers == tokenizer.eos_token_id) & batch.mask
    assert ends.sum(-1).tolist() == [[1, 1]]


def test_without_a_padding_token(tiny: Callable[..., Loaded]):
    loaded = tiny("llava")
    loaded.processor.tokenizer.pad_token = None
    encoder = Encoder(loaded, max_length=400)
    batch = encoder.collate(mixed_items(encoder))
    assert batch.answers[~batch.mask].unique().tolist() == [encoder.end]


def test_a_model_without_any_end_is_refused(tiny: Callable[..., Loaded]):
    loaded = tiny("llava")
    loaded.processor.tokenizer.eos_token = None
    loaded.model.generation_config.eos_token_id = None
    with pytest.raises(UserError, match="which token ends an answer"):
        Encoder(loaded, max_length=400)


def test_generation_settings_name_the_end_of_a_turn(tiny: Callable[..., Loaded]):
    """The tokeniser's own end is `</s>`, the chat's is `<|im_end|>`, which is an ordinary special token here."""
    loaded = tiny("llava")
    loaded.processor.chat_template = CHATML.replace("IMAGE", "<image>")
    assert Encoder(loaded, max_length=400).ending == "\n"  # no token of the tokeniser's: </s> is put after it
    tokenizer = loaded.processor.tokenizer
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    encoder = Encoder(loaded, max_length=400)
    assert encoder.ending == "<|im_end|>\n" and encoder.end == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_token_over_the_boundary_belongs_to_the_answer(tiny: Callable[..., Loaded]):
    """The generation prompt ends with a space that merges with the answer's first word: prompt + answer stays exact."""
    loaded = tiny("llava")
    loaded.processor.chat_template = VICUNA.replace("'ASSISTANT:'", "'ASSISTANT: '")
    encoder = Encoder(loaded, max_length=400)
    tokens = loaded.processor.tokenizer
    item = encoder.encode(question(images=0), [], ["a cat", "dogs"])
    for tail, answer in zip(item.answers, ("a cat", "dogs")):
        whole = tokens(f"USER: what is in the image? ASSISTANT: {answer}")["input_ids"]
        assert [*item.prompt.tolist(), *tail.tolist()] == [*whole, encoder.end]
    assert tokens.decode(item.prompt).endswith("ASSISTANT:") and tokens.decode(item.answers[0]).startswith(" a")


def test_what_is_too_long_loses_the_end_of_answers_only(tiny: Callable[..., Loaded]):
    """A prompt of P tokens and answers of 3 + end and 8 + end: at max_length = P + 4 one is whole, one is cut to 4."""
    loaded = tiny("llava")
    ask: Callable[[int], Any] = lambda longest: Encoder(loaded, max_length=longest).encode(
        question(), [picture(0)], ["a red cat", "two dogs and one cat on a table"], name="row 17"
    )
    whole = ask(400)
    short, long = (len(answer) for answer in whole.answers)
    P = len(whole.prompt)
    cut = ask(P + short)
    assert cut.complete == (True, False)
    assert torch.equal(cut.prompt, whole.prompt) and torch.equal(cut.answers[0], whole.answers[0])
    assert torch.equal(cut.answers[1], whole.answers[1][:short]) and short < long
    assert [len(answer) for answer in ask(P + 1).answers] == [1, 1]
    with pytest.raises(UserError, match=rf"row 17: the prompt alone has {P} tokens, 9 of them for 1 images.*is {P}\."):
        ask(P)


@pytest.mark.parametrize(
    ("name", "messages", "images", "answer", "reason"),
    [
        ("llava", question(images=2), 1, "one", "places for 2 images, and 1 are given"),
        ("llava", question("<image> what?"), 1, "one", "a text holds '<image>'"),
        ("qwen2_vl", question(), 1, "a <|image_pad|>", "a text holds '<|image_pad|>'"),
        ("gemma3", question("a <image_soft_token>"), 1, "one", "a text holds '<image_soft_token>'"),
    ],
)
def test_rows_that_would_shift_images_are_refused(name, messages, images, answer, reason, tiny: Callable[..., Loaded]):
    encoder = Encoder(tiny(name), max_length=400)
    with pytest.raises(UserError) as refusal:
        encoder.encode(messages, [picture(0)] * images, [answer], name="row 3")
    assert "row 3: " in str(refusal.value) and reason in str(refusal.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_processor_runs_once_a_pair(name: str, tiny: Callable[..., Loaded]):
    encoder = Encoder(tiny(name), max_length=400)
    encoder.processor = Counting(encoder.processor)
    encoder.encode(question(images=2), [picture(0), picture(1)], ["one", "two"])
    assert encoder.processor.calls == 1


def test_batches(tiny: Callable[..., Loaded]):
    """Answers and lengths as encoded, images once each, `only` and `to` keep them."""
    loaded = tiny("llava")
    encoder = Encoder(loaded, max_length=400)
    items = mixed_items(encoder)
    batch = encoder.collate(items)
    assert batch.images == ((0, 1), (), (1,), (1,)) and len(batch.pixels["pixel_values"]) == 2
    for row, item in enumerate(items):
        for column, answer in enumerate(item.answers):
            assert torch.equal(batch.answers[row, column][batch.mask[row, column]], answer)
        assert torch.equal(batch.prompt[row, : batch.prompt_lengths[row]], item.prompt)
    rejected = batch.to("cpu").only(1)
    assert torch.equal(rejected.answers[:, 0], batch.answers[:, 1])
    noisy = batch.with_pixels(lambda pixels: pixels + 1)
    assert torch.equal(noisy.pixels["pixel_values"], batch.pixels["pixel_values"] + 1) and noisy.keys == ()
    alone = encoder.collate(items[1:2])
    assert alone.images == ((),) and len(alone.pixels["pixel_values"]) == 1, "a blank image stands by"


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_data_workers_can_take_the_encoder_along(name: str, tiny: Callable[..., Loaded]):
    encoder = Encoder(tiny(name), max_length=400)
    data = pickle.dumps(encoder)
    assert len(data) < 400_000
    other = pickle.loads(data)
    ask = (question(), [picture(0)], ["one", "two"])
    assert torch.equal(other.encode(*ask).prompt, encoder.encode(*ask).prompt)


def test_a_chat_model_without_its_template_is_refused(tiny: Callable[..., Loaded]):
    loaded = tiny("llava")
    loaded.processor.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        Encoder(loaded, max_length=400)


def test_what_the_processor_refuses_names_the_row(tiny: Callable[..., Loaded]):
    """A template that raises, as many do where turns are out of order; and a picture of no height for its tiles."""
    encoder = Encoder(tiny("llava"), max_length=400)
    encoder.processor.chat_template = "{{ raise_exception('turns must alternate') }}"
    with pytest.raises(UserError, match="pair 7: the processor of .* refuses it: turns must alternate"):
        encoder.encode(question(images=0), [], ["a cat"], name="pair 7")
    encoder = Encoder(tiny("qwen2_vl"), max_length=4000)
    with pytest.raises(UserError, match="pair 8: the processor of .* refuses it: .*aspect ratio"):
        encoder.encode(question(), [picture(0, (2000, 4))], ["a cat"], name="pair 8")

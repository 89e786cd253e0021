"""From messages, images and answers to tokens: what a data worker does to each pair."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from palate.conversations import IMAGE, Message
from palate.errors import UserError
from vlm.batch import Batch, Encoded, Pixels, padded
from vlm.loading import Loaded

_PROBE = "palate"


class Encoder:
    """Turns prompts and answers into tokens, as the model's own chat template writes them.

    Holds the processor and no weights, so data workers can take it along.
    """

    def __init__(self, loaded: Loaded, *, max_length: int) -> None:
        """max_length: most tokens of a prompt and one answer together, image tokens included."""
        self.processor, self.family, self.source = loaded.processor, loaded.family, loaded.source
        self.max_length = max_length
        tokenizer = self.processor.tokenizer
        self.image_token: str = self.processor.image_token
        """What a text holds where an image goes."""
        self.feature_token: str = tokenizer.convert_ids_to_tokens(self.family.image_token_id)
        """What it becomes, once for each of the image's tokens."""
        self.ending, self.end = self._find_end(loaded.model.generation_config)
        self.pad: int = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        blank = self._process([Message.user("?", 1)], [Image.new("RGB", (64, 64))])
        self.blank, self.blank_tokens = blank[1][0], blank[2][0]

    # --- one prompt --------------------------------------------------------------------------------------------------

    def encode(
        self, messages: Sequence[Message], images: Sequence[Image.Image], answers: Sequence[str], *, name: str = "row"
    ) -> Encoded:
        """Return one prompt and its answers as tokens; the processor runs once.

        messages: the conversation up to the answer. images: one for each place in the messages, in order.
        The answers' tokens are those of the templated answer turn, up to and with its end-of-turn token; a template
        that writes none gets the tokeniser's end of sequence. An answer that is too long loses its end, and then its
        end-of-turn token; nothing is ever cut from the prompt. name: what to call the row in errors.

        Raises UserError where the prompt leaves no room for an answer, where images and places differ in number, or where
        a text holds the model's image token, or where the processor refuses a picture or the order of turns.
        """
        self._check(messages, images, answers, name)
        try:
            prompt, pixels, image_tokens = self._process(messages, images)
            tails = self._tails(messages, prompt, answers)
        except (ValueError, TemplateError) as error:  # a picture too narrow for the processor, turns out of order
            raise UserError(f"{name}: the processor of {self.source} refuses it: {error}") from error
        prompt = prompt[: len(prompt) - tails.cut]
        room = self.max_length - len(prompt)
        if room < 1:
            pictures = f", {sum(image_tokens)} of them for {len(images)} images" if images else ""
            raise UserError(
                f"{name}: the prompt alone has {len(prompt)} tokens{pictures}, and max_length is {self.max_length}. Raise "
                "max_length, shorten the prompt or leave the row out; nothing is cut from a prompt."
            )
        return Encoded(
            prompt=torch.tensor(prompt),
            answers=tuple(torch.tensor(answer[:room]) for answer in tails.answers),
            complete=tuple(len(answer) <= room for answer in tails.answers),
            images=tuple(pixels),
            keys=tuple(key_of(image) for image in pixels),
            image_tokens=tuple(image_tokens),
        )

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Return the prompt as the chat template writes it, up to where the answer begins."""
        if self.processor.chat_template is None:
            return self.family.write_prompt(messages, self.image_token)
        return self.processor.apply_chat_template(
            [m.template() for m in messages], add_generation_prompt=True, tokenize=False
        )

    def _check(self, messages: Sequence[Message], images: Sequence[Any], answers: Sequence[str], name: str) -> None:
        places = sum(message.places for message in messages)
        if places != len(images):
            raise UserError(f"{name}: the messages have places for {places} images, and {len(images)} are given.")
        texts = [part for message in messages for part in message.parts if part is not IMAGE]
        for token in {self.image_token, self.feature_token}:
            if any(token in text for text in [*texts, *answers]):
                raise UserError(
                    f"{name}: a text holds {token!r}, which {self.source} takes for an image. Take it out; an image's "
                    "place is an IMAGE part of its message."
                )

    def _process(
        self, messages: Sequence[Message], images: Sequence[Image.Image]
    ) -> tuple[list[int], list[Pixels], list[int]]:
        """Return the prompt's tokens, the processed images, and how many tokens each stands for."""
        text = self.prompt_text(messages)
        if not images:
            if (
                self.processor.chat_template is None
            ):  # what the processor would add, which refuses to run without images
                text = f"{self.processor.tokenizer.bos_token}{text}\n"
            return self._tokens(text), [], []
        made = self.processor(
            text=[text],
            images=[list(images)],
            return_tensors="pt",
            return_text_replacement_offsets=True,
            **self._special(text),
        )
        counts = [
            found["replacement"].count(self.feature_token)
            for found in made["text_replacement_offsets"][0]
            if found["type"] == "image"
        ]
        known = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")
        pixels = {key: made[key] for key in known if key in made}
        return made["input_ids"][0].tolist(), self.family.split(pixels, counts), counts

    def _tails(self, messages: Sequence[Message], prompt: list[int], answers: Sequence[str]) -> _Tails:
        if self.processor.chat_template is None:
            return _Tails(0, [[*self._tokens(answer, special=False), self.end] for answer in answers])
        written = self._tokens(self.prompt_text(messages))
        whole = [self._tokens(self._answered(messages, answer)) for answer in answers]
        common = min((_common(written, tokens) for tokens in whole), default=len(written))
        cut = len(written) - common
        assert prompt[len(prompt) - cut :] == written[common:], "the processor changed the prompt after its last image"
        return _Tails(cut, [[*tokens[common:], self.end] for tokens in whole])

    def _answered(self, messages: Sequence[Message], answer: str) -> str:
        """Return the conversation with its answer turn, up to but without its end-of-turn token."""
        turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        text = self.processor.apply_chat_template([*(m.template() for m in messages), turn], tokenize=False)
        return text.removesuffix(self.ending)

    def _tokens(self, text: str, *, special: bool = True) -> list[int]:
        how = self._special(text) if special else {"add_special_tokens": False}
        return self.processor.tokenizer(text, **how)["input_ids"]

    def _special(self, text: str) -> dict[str, bool]:
        """A template that writes the beginning of sequence itself must not get a second one."""
        bos = self.processor.tokenizer.bos_token
        return {"add_special_tokens": not (bos is not None and text.startswith(bos))}

    def _find_end(self, generation: Any) -> tuple[str, int]:
        """Return what the template writes after an answer and is not part of it, and the token that ends an answer."""
        tokenizer = self.processor.tokenizer
        stops = generation.eos_token_id if generation is not None else None
        stops = [stops] if isinstance(stops, int) else list(stops or [])
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else next(iter(stops), None)
        if self.processor.chat_template is not None:
            written = self._probe()
            ids = self._tokens(written, special=False)
            end = next((i for i in ids if i in (eos, *stops)), None)
            if end is None:
                special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
                end = next((i for i in ids if i in special), None)
            if end is not None:
                return written[written.index(tokenizer.convert_ids_to_tokens(end)) :], end
            spaces = written[len(written.rstrip()) :]
            if eos is not None:
                return spaces, eos
        if eos is None:
            raise UserError(f"{self.source}: neither its tokeniser nor its template says which token ends an answer.")
        return "", eos

    def _probe(self) -> str:
        turns = [("user", "?"), ("assistant", _PROBE)]
        chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        return self.processor.apply_chat_template(chat, tokenize=False).rpartition(_PROBE)[2]

    # --- a batch -----------------------------------------------------------------------------------------------------

    def collate(self, items: Sequence[Encoded]) -> Batch:
        """Return one batch on the CPU; every distinct image is in it once. All items have the same number of answers."""
        distinct: dict[str, int] = {}
        pixels: list[Pixels] = []
        image_tokens: list[int] = []
        for item in items:
            for key, image, tokens in zip(item.keys, item.images, item.image_tokens, strict=True):
                if distinct.setdefault(key, len(distinct)) == len(pixels):
                    pixels.append(image)
                    image_tokens.append(tokens)
        prompts = [item.prompt for item in items]
        placed = [self.family.positions(item.prompt, item.images) for item in items]
        answers = [padded(item.answers, self.pad) for item in items]
        return Batch(
            prompt=padded(prompts, self.pad),
            prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
            positions=padded([positions for positions, _ in placed]).transpose(0, 1),
            next_position=torch.tensor([after for _, after in placed]),
            blocks=padded([self.family.blocks(prompt) for prompt in prompts], -1),
            answers=padded(answers, self.pad),
            answer_lengths=torch.tensor([[len(answer) for answer in item.answers] for item in items]),
            complete=torch.tensor([item.complete for item in items]),
            images=tuple(tuple(distinct[key] for key in item.keys) for item in items),
            pixels=self.family.join(pixels or [self.blank]),
            keys=tuple(distinct),
            image_tokens=tuple(image_tokens) or (self.blank_tokens,),
        )


class _Tails:
    """What follows the part of the prompt that all answers share."""

    def __init__(self, cut: int, answers: list[list[int]]) -> None:
        self.cut = cut
        """Tokens at the prompt's end that merge with the answer, and so belong to it."""
        self.answers = answers


def key_of(image: Pixels) -> str:
    """Return a hash of a processed image: of its values and shapes, so of its preprocessing too."""
    digest = blake2b(digest_size=16)
    for name in sorted(image):
        tensor: Tensor = image[name].contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common beginning."""
    return next((k for k, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))

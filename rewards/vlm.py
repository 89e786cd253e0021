"""A vision-language model's first word of answer, as probabilities: a local model of transformers, or an endpoint.

What is asked of it is a verdict, one of a few words. Reading the probability of each is finer than reading the answer,
needs no sampling, and says how sure the model is.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from palate.errors import UserError
from palate.records import Media
from rewards.devices import Dtype, Portions, find_device, find_dtype, torch_dtype
from rewards.weights import Loaded, content_hash, shared

if TYPE_CHECKING:
    from PIL import Image

    from palate.endpoint import ChatClient

_PADDED = {"padding": True, "return_tensors": "pt"}
_ALTERNATIVES = 20  # as many as endpoints report


@dataclass(frozen=True)
class Question:
    """A text that is asked after some pictures."""

    text: str
    pictures: tuple[Any, ...]
    """As `Answerer.prepare` makes them."""


@dataclass(frozen=True)
class Verdict:
    """word -> probability of being the first word of the answer; or why there is none."""

    probabilities: Mapping[str, float]
    failure: str = ""


class Answerer(Protocol):
    """A model that gives verdicts. weights: what identifies it."""

    @property
    def label(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def dtype(self) -> str: ...

    def prepare(self, picture: Image.Image) -> Any:
        """Return a picture as `ask` takes it."""
        ...

    def ask(self, questions: Sequence[Question], words: Sequence[str]) -> list[Verdict]:
        """Return the verdict of each question over these words."""
        ...


class LocalModel:
    """An image-text-to-text model of transformers, with its processor's own chat template.

    Inputs are padded on the right and read at their last token, which needs no rule for the positions of padding.
    """

    def __init__(self, loaded: Loaded, label: str, weights: str, dtype: Dtype, batch_size: int) -> None:
        self.label, self.weights, self.dtype = label, weights, dtype
        self._loaded, self._model, self._processor = loaded, loaded.model, loaded.reader
        self._portions = Portions(batch_size)
        marks = {*self._processor.tokenizer.all_special_tokens, getattr(self._processor, "image_token", None)}
        self._marks = sorted(mark for mark in marks if isinstance(mark, str) and mark)
        self._keeps = "logits_to_keep" in inspect.signature(self._model.forward).parameters

    def prepare(self, picture: Image.Image) -> Image.Image:
        return picture

    def ask(self, questions: Sequence[Question], words: Sequence[str]) -> list[Verdict]:
        ids = first_tokens(self._processor.tokenizer, words, self.label)
        marks = [next((mark for mark in self._marks if mark in question.text), "") for question in questions]
        asked = [question for question, mark in zip(questions, marks, strict=True) if not mark]
        rows: Iterator[list[float]] = iter(())
        if asked:
            with torch.inference_mode():
                found = self._portions.run(lambda where: self._probabilities(asked[where])[:, ids].cpu(), len(asked))
            rows = iter(found.double().tolist())
        return [
            Verdict({}, f"The prompt contains {mark}, which the model takes for a mark of its own.")
            if mark
            else Verdict(dict(zip(words, next(rows), strict=True)))
            for mark in marks
        ]

    def _probabilities(self, questions: Sequence[Question]) -> Tensor:
        """Return (B, V) float32 probabilities of the next token."""
        chats = [
            [
                {
                    "role": "user",
                    "content": [*({"type": "image", "image": p} for p in q.pictures), {"type": "text", "text": q.text}],
                }
            ]
            for q in questions
        ]
        inputs = self._processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=_PADDED
        ).to(self._model.device, torch_dtype(self.dtype))
        last = inputs["attention_mask"].sum(1) - 1
        if self._keeps:  # the logits of the last tokens only: a long prompt's would fill the memory
            places, index = torch.unique(last, return_inverse=True)
            logits = self._model(**inputs, logits_to_keep=places).logits
        else:
            logits, index = self._model(**inputs).logits, last
        return logits[torch.arange(len(questions)), index].float().softmax(-1)


class Endpoint:
    """A model behind an OpenAI-compatible chat endpoint that reports log-probabilities."""

    dtype = "remote"

    def __init__(self, client: ChatClient) -> None:
        self.label, self.weights = client.model, content_hash(["endpoint", client.url, client.model])
        self._client = client

    def prepare(self, picture: Image.Image) -> Media:
        return Media.image(picture)

    def ask(self, questions: Sequence[Question], words: Sequence[str]) -> list[Verdict]:
        from palate.endpoint import Chat

        chats = [Chat.about(q.text, q.pictures, max_tokens=1, top_logprobs=_ALTERNATIVES) for q in questions]
        return [_verdict(reply, words) for reply in self._client.ask(chats)]


def _verdict(reply: Any, words: Sequence[str]) -> Verdict:
    """Return the probabilities of the first token's alternatives, summed by word."""
    if not reply.ok:
        return Verdict({}, reply.failure)
    if not reply.tokens:
        return Verdict({}, "The endpoint reports no log-probabilities; the judge needs them.")
    first = reply.tokens[0]
    listed = dict(first.top) or {first.text: first.logprob}
    return Verdict(
        {word: math.fsum(math.exp(p) for text, p in listed.items() if text.strip() == word) for word in words}
    )


def first_tokens(tokenizer: Any, words: Sequence[str], label: str) -> list[int]:
    """Return the token that each word begins with; UserError where two words begin alike."""
    ids = [tokenizer.encode(word, add_special_tokens=False)[:1] for word in words]
    if not all(ids) or len({i[0] for i in ids}) < len(words):
        raise UserError(
            f"The tokenizer of {label} begins several of the verdicts {', '.join(words)} with the same token, so the "
            "first token cannot tell them apart. Choose other words."
        )
    return [i[0] for i in ids]


def load_local(source: str, *, dtype: Dtype | None, device: str | None, batch_size: int) -> LocalModel:
    """Return a transformers model from a folder or "owner/name@revision", loaded once in a process."""
    from rewards.transformers_clip import model_folder, weight_files

    folder, label = model_folder(source)
    where = find_device(device)
    arithmetic = find_dtype(dtype, where)
    described = sorted(path for end in ("json", "txt", "jinja", "model") for path in folder.glob(f"*.{end}"))
    weights = content_hash("vlm", [*described, *weight_files(folder)])
    key = ("vlm", weights, str(where), arithmetic)
    loaded = shared(key, lambda: _load(folder, label, arithmetic, where))
    return LocalModel(loaded, label, weights, arithmetic, batch_size)


def _load(folder: Path, label: str, dtype: Dtype, device: torch.device) -> Loaded:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch_dtype(dtype))
        processor = AutoProcessor.from_pretrained(folder)
    except Exception as error:  # safetensors, pickle and transformers each have their own for a bad folder
        raise UserError(
            f"transformers cannot load {label} as a model of images and text: {error}. Check that the folder is whole."
        ) from error
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"The processor of {label} has no chat template; the judge needs a model that takes chats.")
    processor.tokenizer.padding_side = "right"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return Loaded(model.to(device).eval().requires_grad_(False), processor)

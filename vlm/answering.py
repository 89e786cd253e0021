"""Questions about images, and their answers, kept in a file: by whoever answers, a local model or an endpoint.

asks = [Ask("1", (Message.user("What is this?", 1),), (Media.image("cat.png"),))]
answerer = EndpointAnswerer(ChatClient("http://localhost:8000/v1", "some-model"))
rows = answer_file(answerer, asks, "answers.jsonl")
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from tqdm.auto import tqdm

from palate.checking import digest
from palate.conversations import IMAGE, Message
from palate.endpoint import Chat, ChatClient
from palate.errors import UserError
from palate.kept import FAILURE, KEY, KeptRows
from palate.randomness import key
from palate.records import Media

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """A prompt with its images, to be answered. `id` names it in files and seeds its draws."""

    id: str
    messages: tuple[Message, ...]
    images: tuple[Media, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What was answered, or why nothing was (`failure`). finish: "stop", or "length" where it was cut.

    tokens: how many the answer has, its end-of-turn token among them; None where an endpoint answered.
    """

    text: str = ""
    failure: str = ""
    finish: str = ""
    tokens: int | None = None


class Answerer(Protocol):
    """Something that answers: a local model, or an endpoint."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes the answers, as JSON can hold it."""
        ...

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer]]:
        """Yield (number of the ask, its answer), each once, in any order. What goes wrong with one is its failure."""
        ...


class EndpointAnswerer:
    """An OpenAI-compatible endpoint that answers. Above temperature 0, each ask is sent a seed of its own."""

    def __init__(self, client: ChatClient, *, max_tokens: int = 512, temperature: float = 0.0, seed: int = 0) -> None:
        self.client, self.max_tokens, self.temperature, self.seed = client, max_tokens, temperature, seed
        self.settings: Mapping[str, Any] = {
            "endpoint": client.url,
            "model": client.model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            **({"seed": seed} if temperature else {}),
        }

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer]]:
        """Yield (number of the ask, its answer) as they arrive."""
        chats = [
            Chat(ask.messages, ask.images, self.temperature, self.max_tokens, seed=self._seed(ask.id)) for ask in asks
        ]
        for number, reply in self.client.stream(chats):
            yield number, Answer(reply.text.strip(), reply.failure, reply.finish)

    def _seed(self, name: str) -> int | None:
        return key(self.seed, name, 0, "answer") >> 32 if self.temperature else None


def answer_file(answerer: Answerer, asks: Sequence[Ask], path: str | Path, *, progress: str | None = None) -> list[Row]:
    """Answer what a JSONL file does not answer yet, and return the rows of all asks, in order.

    A row has id, question, answer, finish, tokens and key, or a `failure`; failures are tried again by the next run.
    The key holds the question, the images' content, the model's weights and the settings: a file with answers that were
    made otherwise is refused.
    """
    names = [_key_of(ask, answerer.settings) for ask in asks]
    if len({ask.id for ask in asks}) < len(asks):
        raise UserError("Two questions have the same id. Each needs its own, to find its answer by.")
    with KeptRows(path).open() as kept:
        answered = {row.get("id") for row in kept.rows.values()}
        stale = next((a.id for a, name in zip(asks, names) if name not in kept.rows and a.id in answered), None)
        if stale is not None:
            raise UserError(
                f"{path} answers question {stale} already, with other weights, settings, images or words. Give the name "
                "of a new file, or remove that one."
            )
        rows = [kept.rows.get(name, {}) for name in names]
        todo = [number for number, row in enumerate(rows) if not row]
        with tqdm(total=len(asks), initial=len(asks) - len(todo), desc=progress, disable=progress is None) as bar:
            for place, answer in answerer.answer([asks[number] for number in todo]):
                number = todo[place]
                rows[number] = _row(asks[number], answer, names[number])
                kept.add(rows[number])
                bar.update()
    return rows


def _row(ask: Ask, answer: Answer, name: str) -> Row:
    head = {"id": ask.id, "question": ask.messages[-1].text}
    if answer.failure:
        return {**head, FAILURE: answer.failure, KEY: name}
    return {**head, "answer": answer.text, "finish": answer.finish, "tokens": answer.tokens, KEY: name}


def _key_of(ask: Ask, settings: Mapping[str, Any]) -> str:
    words = [[message.role, *(0 if part is IMAGE else part for part in message.parts)] for message in ask.messages]
    try:
        images = [image.id for image in ask.images]
    except UserError:  # to be found again, and said, when it is answered
        images = ["unreadable"]
    return digest([ask.id, json.dumps(words), *images, json.dumps(settings, sort_keys=True)])

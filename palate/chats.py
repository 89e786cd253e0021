"""Questions to a chat endpoint and its answers, and the JSON that says them (OpenAI's chat completions)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palate.conversations import IMAGE, Message
from palate.errors import UserError
from palate.records import Media

_MAGIC = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}


@dataclass(frozen=True)
class Chat:
    """One question: messages, the images of their places in order, and how to answer.

    top_logprobs: how many alternatives to report for each token of the answer; 0 asks for no log-probabilities.
    seed: passed on where given. Two equal questions share one cached answer, so give samples different seeds.
    extra: further fields of the request's body, such as {"top_p": 0.9}; they win over the fields above.
    """

    messages: tuple[Message, ...]
    images: Sequence[Media] = ()
    temperature: float = 0.0
    max_tokens: int = 512
    seed: int | None = None
    top_logprobs: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        places = sum(message.places for message in self.messages)
        if not self.messages or places != len(self.images):
            raise UserError(
                f"A chat has messages, and an image for each place: got {len(self.messages)} messages with {places} "
                f"places, and {len(self.images)} images."
            )

    @classmethod
    def about(cls, question: str, images: Sequence[Media] = (), *, system: str = "", **more: Any) -> Chat:
        """Return a chat of one question asked after its images. more: any other field."""
        head = (Message("system", (system,)),) if system else ()
        return cls((*head, Message.user(question, len(images))), tuple(images), **more)


@dataclass(frozen=True)
class Token:
    """A token of an answer, its log-probability in nats, and those of the likeliest alternatives by their text."""

    text: str
    logprob: float
    top: Mapping[str, float]


@dataclass(frozen=True)
class Reply:
    """An answer, or why there is none (`failure`).

    finish is the server's word for why it stopped: "stop", or "length" for an answer cut at `max_tokens`.
    """

    text: str = ""
    failure: str = ""
    finish: str = ""
    tokens: Sequence[Token] = ()
    cached: bool = False

    @property
    def ok(self) -> bool:
        return not self.failure


def request_body(chat: Chat, model: str) -> dict[str, Any]:
    """Return the JSON that asks a model. UserError for an image that cannot be read."""
    images = iter(chat.images)
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": m.role, "content": _content(m, images)} for m in chat.messages],
        "temperature": chat.temperature,
        "max_tokens": chat.max_tokens,
    }
    if chat.seed is not None:
        body["seed"] = chat.seed
    if chat.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": chat.top_logprobs}
    return body | dict(chat.extra)


def read_reply(data: Any, *, cached: bool = False) -> Reply:
    """Return what a chat completion's JSON says; a reply without a text is a failure."""
    try:
        choice = data["choices"][0]
        text, finish = choice["message"].get("content"), str(choice.get("finish_reason") or "")
        if not isinstance(text, str):
            refusal = choice["message"].get("refusal")
            return Reply(failure=f"the reply has no text: {refusal or finish or 'no reason given'}", finish=finish)
        listed = (choice.get("logprobs") or {}).get("content") or ()
        tokens = tuple(
            Token(t["token"], float(t["logprob"]), {a["token"]: float(a["logprob"]) for a in t.get("top_logprobs", ())})
            for t in listed
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return Reply(failure=f"the reply is no chat completion: {json.dumps(data)[:120]}")
    return Reply(text=text, finish=finish, tokens=tokens, cached=cached)


def data_url(image: Media) -> str:
    """Return an image as a data URL: PNG, JPEG, GIF and WebP as they are, anything else as PNG. UserError if unreadable."""
    if image.path and image.path.startswith(("http://", "https://")):
        raise UserError(f"{image.path} is an address; images are not fetched. Download it and give the file.")
    content = image.content()
    kind = next((name for magic, name in _MAGIC.items() if content.startswith(magic)), "")
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kind = "webp"
    if not kind:
        content, kind = Media.image(image.decode()).content(), "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _content(message: Message, images: Iterator[Media]) -> str | list[dict[str, Any]]:
    if not message.places:
        return message.text
    return [
        {"type": "image_url", "image_url": {"url": data_url(next(images))}}
        if part is IMAGE
        else {"type": "text", "text": part}
        for part in message.parts
    ]

"""Conversations as people keep them -> messages: `{"from", "value"}`, `{"role", "content"}`, or one string.

`<image>` in a text is a place of an image, as in LLaVA's data; the white space around it is the template's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palate.conversations import IMAGE, Message, Part, Role
from palate.readers.reader import Unreadable

MARK = "<image>"
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def turns(name: str, value: Any) -> tuple[Message, ...]:
    """Return the messages in column `name`; Unreadable where it holds something else."""
    if isinstance(value, str):
        return (Message("user", _parts(name, value)),)
    if not isinstance(value, Sequence) or not value:
        raise Unreadable(f"{name} holds no messages", "Write a list of {role, content}, or one text.")
    return tuple(_turn(name, turn) for turn in value)


def answer(name: str, value: Any) -> str:
    """Return the one answer in column `name`: a text, or messages of which the only one is the assistant's."""
    if isinstance(value, str):
        return value
    messages = turns(name, value)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise Unreadable(f"{name} is not one answer", "Give it one message of the assistant, or a text.")
    return messages[0].text


def placed(prompt: tuple[Message, ...], images: int) -> tuple[Message, ...]:
    """Return the prompt with a place for each image: where none is marked, all before the first question."""
    places = sum(message.places for message in prompt)
    if places == images:
        return prompt
    if places:
        raise Unreadable(
            "the number of images is not the number of their places",
            f"There are {images} images and {places} places ({MARK} or a part of type image) in the prompt.",
        )
    first = next(number for number, message in enumerate(prompt) if message.role == "user")
    asked = Message("user", (IMAGE,) * images + prompt[first].parts)
    return (*prompt[:first], asked, *prompt[first + 1 :])


def _turn(name: str, turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise Unreadable(f"{name} has a turn that is no message", "A message is {role, content} or {from, value}.")
    role = turn.get("role") or turn.get("from")
    if not isinstance(role, str) or role not in _ROLES:
        raise Unreadable(f"{name} has a turn of an unknown role", f"It is {role!r}; known: {', '.join(_ROLES)}.")
    content = turn.get("content") if "content" in turn else turn.get("value")
    if isinstance(content, str):
        return Message(_ROLES[role], _parts(name, content))
    if not isinstance(content, Sequence):
        raise Unreadable(f"{name} has a turn without content", "Give it a text, or a list of parts.")
    return Message(_ROLES[role], tuple(part for piece in content for part in _typed(name, piece)))


def _typed(name: str, piece: Any) -> tuple[Part, ...]:
    """Return the parts of one `{"type", ...}` of a message; an empty text is none."""
    kind = piece.get("type") if isinstance(piece, Mapping) else None
    if kind == "image":
        if any(piece.get(key) is not None for key in ("image", "url", "path")):
            raise Unreadable(f"{name} has an image inside a message", "Put it into the column images.")
        return (IMAGE,)
    text = piece.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise Unreadable(f"{name} has a part that is neither text nor image", "A part is {type: text, text: ...}.")
    return (text,) if text.strip() else ()


def _parts(name: str, text: str) -> tuple[Part, ...]:
    if MARK not in text:
        if not text.strip():
            raise Unreadable(f"{name} has an empty text", "Give it a text, or leave the row out.")
        return (text,)
    parts: list[Part] = []
    for number, piece in enumerate(text.split(MARK)):
        parts += [IMAGE] * (number > 0) + [piece.strip()] * bool(piece.strip())
    return tuple(parts)

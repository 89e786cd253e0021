"""What palate knows about answers to conversations with images: messages, exchanges, pairs of answers.

A prompt is a sequence of messages in which places stand where images go; the images themselves lie beside it, in the
order of their places. As in `palate.records`, each record checks itself when it is made, and none imports torch. What
concerns one answer only goes into `meta["made"]`, keyed by `answer_id`, so that `swap()` may leave `meta` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias, get_args

from palate.checking import checked_mapping, checked_number, checked_text, digest, settle, shown
from palate.errors import UserError, unknown
from palate.records import Media

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


class Place(Enum):
    """What stands in a message besides text."""

    IMAGE = "image"


IMAGE: Final = Place.IMAGE
"""The place of one image in a message."""

Part: TypeAlias = str | Literal[Place.IMAGE]


@dataclass(frozen=True)
class Message:
    """One turn: texts and places of images, in order. Images stand in the user's turns only."""

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(unknown("role of a message", str(self.role), ROLES))
        if isinstance(self.parts, str) or not isinstance(self.parts, Iterable):
            raise UserError(f"Message.parts is a sequence of texts and IMAGE, not {shown(self.parts)}.")
        settle(self, "parts", tuple(self.parts))
        for number, part in enumerate(self.parts):
            if part is not IMAGE:
                checked_text(f"Message.parts[{number}]", part)
        if not self.parts:
            raise UserError(f"A message of the {self.role} is empty. Give it a text, or leave it out.")
        if self.places and self.role != "user":
            raise UserError(f"A message of the {self.role} has a place for an image; only the user's may.")

    @classmethod
    def user(cls, text: str, images: int = 0) -> Message:
        """Return a question with so many images before it."""
        return cls("user", (IMAGE,) * images + (text,))

    @property
    def text(self) -> str:
        """The texts joined by line breaks, without the places."""
        return "\n".join(part for part in self.parts if part is not IMAGE)

    @property
    def places(self) -> int:
        """How many images go into this message."""
        return sum(part is IMAGE for part in self.parts)

    def template(self) -> dict[str, Any]:
        """Return the message as the chat templates of transformers take it: {"role", "content": [{"type", ...}]}."""
        content = [{"type": "image"} if part is IMAGE else {"type": "text", "text": part} for part in self.parts]
        return {"role": self.role, "content": content}


@dataclass(frozen=True)
class Exchange:
    """A prompt with its images and one answer to it."""

    prompt: tuple[Message, ...]
    images: tuple[Media, ...]
    """One for each place of the prompt, in order."""
    answer: str
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        settle(self, "prompt", _prompt("Exchange.prompt", self.prompt))
        settle(self, "images", _images("Exchange.images", self.images, self.prompt))
        checked_text("Exchange.answer", self.answer)
        checked_text("Exchange.source", self.source, empty=True)
        settle(self, "meta", checked_mapping("Exchange.meta", self.meta))

    @cached_property
    def id(self) -> str:
        """Content id of prompt, images and answer: 32 hex characters."""
        return digest([*_prompt_content(self.prompt), *(image.id for image in self.images), self.answer])

    def against(
        self, rejected: str, made: Mapping[str, Any], *, rejected_images: Sequence[Media] | None = None, **more: Any
    ) -> AnswerPair:
        """Return the pair of this answer, chosen, and a rejected one.

        made: how the rejected answer came about, as JSON can hold it: {"method": ..., its parameters, tokens changed}.
        more: p_chosen, score_gap, source.
        """
        return AnswerPair(
            prompt=self.prompt,
            images=self.images,
            chosen=self.answer,
            rejected=rejected,
            rejected_images=None if rejected_images is None else tuple(rejected_images),
            meta={**self.meta, "made": {**self.meta.get("made", {}), answer_id(rejected): dict(made)}},
            **{"source": self.source, **more},
        )


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt with its images, and how likely it is that `chosen` is the better one."""

    prompt: tuple[Message, ...]
    images: tuple[Media, ...]
    """One for each place of the prompt, in order."""
    chosen: str
    rejected: str
    rejected_images: tuple[Media, ...] | None = None
    """The images that the rejected answer is given to, where they are others than the chosen answer's."""
    p_chosen: float = 1.0
    """Probability that chosen is better, 0..1; 1/2 is a tie."""
    score_gap: float | None = None
    """Score of chosen minus score of rejected, in the unit that meta["score_unit"] names."""
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        settle(self, "prompt", _prompt("AnswerPair.prompt", self.prompt))
        settle(self, "images", _images("AnswerPair.images", self.images, self.prompt))
        if self.rejected_images is not None:
            settle(self, "rejected_images", _images("AnswerPair.rejected_images", self.rejected_images, self.prompt))
        checked_text("AnswerPair.chosen", self.chosen)
        checked_text("AnswerPair.rejected", self.rejected)
        settle(self, "p_chosen", checked_number("AnswerPair.p_chosen", self.p_chosen, 0, 1))
        if self.score_gap is not None:
            settle(self, "score_gap", checked_number("AnswerPair.score_gap", self.score_gap))
        checked_text("AnswerPair.source", self.source, empty=True)
        settle(self, "meta", checked_mapping("AnswerPair.meta", self.meta))

    @classmethod
    def ask(cls, question: str, images: Sequence[Media], chosen: str, rejected: str, **more: Any) -> AnswerPair:
        """Return the pair of two answers to one question, asked after the images. more: any other field."""
        return cls((Message.user(question, len(images)),), tuple(images), chosen, rejected, **more)

    @cached_property
    def id(self) -> str:
        """Content id of prompt, images and answers: 32 hex characters, the same after `swap()`.

        The label is left out, so that a pair keeps its random draws when opinions about it change.
        """
        other = self.images if self.rejected_images is None else self.rejected_images
        sides = sorted(
            [answer, *(image.id for image in images)]
            for answer, images in ((self.chosen, self.images), (self.rejected, other))
        )
        return digest([*_prompt_content(self.prompt), *sides[0], *sides[1]])

    @property
    def question(self) -> str:
        """The text of the last message, which the answers answer."""
        return self.prompt[-1].text

    @property
    def exchange(self) -> Exchange:
        """The chosen side alone."""
        return Exchange(self.prompt, self.images, self.chosen, self.source, self.meta)

    @property
    def made(self) -> Mapping[str, Any]:
        """How the rejected answer was made (`Exchange.against`); empty if nothing is known."""
        return self.meta.get("made", {}).get(answer_id(self.rejected), {})

    def swap(self) -> AnswerPair:
        """Return the same statement with the sides exchanged: images move along, p becomes 1 - p, the gap -gap."""
        own = self.rejected_images
        return replace(
            self,
            chosen=self.rejected,
            rejected=self.chosen,
            images=self.images if own is None else own,
            rejected_images=None if own is None else self.images,
            p_chosen=1 - self.p_chosen,
            score_gap=None if self.score_gap is None else -self.score_gap,
        )


def answer_id(answer: str) -> str:
    """Return the content id of an answer, 32 hex characters: the key of what `meta["made"]` says about it."""
    return Media.of_text(answer).id


def _prompt(name: str, messages: Any) -> tuple[Message, ...]:
    if isinstance(messages, (str, Message)) or not isinstance(messages, Iterable):
        raise UserError(f"{name} is a sequence of messages, not {shown(messages)}. See Message.user.")
    messages = tuple(messages)
    for message in messages:
        if not isinstance(message, Message):
            raise UserError(f"{name} holds {shown(message)}; expected a Message. See Message.user.")
    if not messages or messages[-1].role != "user":
        raise UserError(f"{name} does not end with a message of the user. Answers follow a question.")
    if any(message.role == "system" for message in messages[1:]):
        raise UserError(f"{name} has a system message that is not its first. Put it first, or leave it out.")
    return messages


def _images(name: str, images: Any, prompt: tuple[Message, ...]) -> tuple[Media, ...]:
    if isinstance(images, (str, bytes, Media)) or not isinstance(images, Iterable):
        raise UserError(f"{name} is a sequence of Media, not {shown(images)}.")
    images = tuple(images)
    for image in images:
        if not isinstance(image, Media) or not image.is_image:
            raise UserError(f"{name} holds {shown(image)}; expected an image. See Media.image.")
    places = sum(message.places for message in prompt)
    if len(images) != places:
        raise UserError(f"{name} are {len(images)}, but the prompt has {places} places for images. Make them equal.")
    return images


def _prompt_content(prompt: tuple[Message, ...]) -> list[str]:
    """Return the prompt as strings that differ wherever prompts do."""
    content = [str(len(prompt))]
    for message in prompt:
        content += [message.role, str(len(message.parts))]
        content += ["\0image" if part is IMAGE else f"\0text{part}" for part in message.parts]
    return content

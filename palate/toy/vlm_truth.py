"""How true a description of a toy picture is: which things it names, which of them are not there, which it misses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from palate.errors import UserError
from palate.statistics import Estimate, mean_interval, ratio, share
from palate.toy.grammar import COLOURS, KINDS, Colour, Kind
from palate.toy.scenes import Thing

_THING = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(KINDS)})s?\b", re.IGNORECASE)


@dataclass(frozen=True)
class Mention:
    """A thing that an answer names, the characters `answer[start:end]` that name it, and whether it is in the picture."""

    thing: Thing
    start: int
    end: int
    true: bool


@dataclass(frozen=True)
class Verdict:
    """What an answer says about a picture of `things`."""

    answer: str
    things: tuple[Thing, ...]
    mentions: tuple[Mention, ...]

    @property
    def hallucinated(self) -> tuple[Mention, ...]:
        """The mentions of things that are not there."""
        return tuple(mention for mention in self.mentions if not mention.true)

    @property
    def found(self) -> int:
        """How many of the picture's things are named."""
        return len({mention.thing for mention in self.mentions if mention.true})

    def marked(self) -> list[tuple[str, bool]]:
        """The answer in pieces (text, hallucinated), which joined give the answer."""
        pieces, at = [], 0
        for mention in self.hallucinated:
            pieces += [(self.answer[at : mention.start], False), (self.answer[mention.start : mention.end], True)]
            at = mention.end
        pieces.append((self.answer[at:], False))
        return [(text, wrong) for text, wrong in pieces if text]


@dataclass(frozen=True)
class Truth:
    """The answers to many pictures in four numbers; the intervals are 95 %, clustered by picture."""

    answers: Estimate
    """Share of answers with at least one hallucinated thing (CHAIR_s)."""
    mentions: Estimate
    """Share of mentions that are hallucinated (CHAIR_i); no data where nothing was named."""
    recall: Estimate
    """Share of the pictures' things that are named."""
    length: Estimate
    """Mean number of things named in an answer."""


def judge(answer: str, things: Sequence[Thing]) -> Verdict:
    """What `answer` says about a picture that shows `things` and nothing else.

    A thing is a colour followed by a shape of the toy world; case and a plural s do not matter, other words are not
    looked at. A thing that is named twice is two mentions, as in CHAIR (Rohrbach et al., 1809.02156).
    """
    found = []
    for match in _THING.finditer(answer):
        thing = cast(Colour, match[1].lower()), cast(Kind, match[2].lower())
        found.append(Mention(thing, match.start(), match.end(), thing in things))
    return Verdict(answer, tuple(things), tuple(found))


def measure(answers: Sequence[str], pictures: Sequence[Sequence[Thing]]) -> Truth:
    """The truth of one answer for each picture, given as the things it shows."""
    if len(answers) != len(pictures):
        raise UserError(f"Every picture needs one answer: given {len(answers)} for {len(pictures)} pictures.")
    verdicts = [judge(answer, things) for answer, things in zip(answers, pictures, strict=True)]
    return Truth(
        answers=share([float(bool(verdict.hallucinated)) for verdict in verdicts]),
        mentions=ratio(
            [len(verdict.hallucinated) for verdict in verdicts], [len(verdict.mentions) for verdict in verdicts]
        ),
        recall=ratio([verdict.found for verdict in verdicts], [len(verdict.things) for verdict in verdicts]),
        length=mean_interval([float(len(verdict.mentions)) for verdict in verdicts]),
    )


def recall_change(before: Sequence[str], after: Sequence[str], pictures: Sequence[Sequence[Thing]]) -> Estimate:
    """The change of recall, from -1 to 1, between two lists of answers to the same pictures: the mean over the pictures'
    things, each paired with itself, clustered by picture."""
    (old, of), (new, _) = (
        _named([judge(answer, things) for answer, things in zip(answers, pictures, strict=True)])
        for answers in (before, after)
    )
    return mean_interval([b - a for a, b in zip(old, new, strict=True)], clusters=of)


def _named(verdicts: Sequence[Verdict]) -> tuple[list[float], list[int]]:
    """For each thing of each picture: 1 if it is named, else 0; and the number of the picture."""
    named, of = [], []
    for number, verdict in enumerate(verdicts):
        said = {mention.thing for mention in verdict.mentions}
        named += [float(thing in said) for thing in verdict.things]
        of += [number] * len(verdict.things)
    return named, of

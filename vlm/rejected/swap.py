"""A wrong answer from a right one by rules: objects, attributes, relations and counts swapped for others of their kind.

It needs no model and changes the length by a few letters, so it is also the length-matched control of the methods that do.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from palate.checking import digest
from palate.conversations import Exchange
from palate.errors import UserError, unknown
from palate.randomness import key, uniform
from vlm.evaluate.words import Word, words
from vlm.rejected.building import Made
from vlm.rejected.lexicon import KINDS, Entry, Kind, Lexicon, english

_SOUNDS_LIKE_A_CONSONANT = ("uni", "use", "euro", "one", "uk")


@dataclass(frozen=True)
class Change:
    """One swap: what stood at text[start:end] of the true answer, and what stands there now."""

    kind: Kind
    start: int
    end: int
    was: str
    now: str


class _Place(NamedTuple):
    entry: Entry
    start: int
    end: int


def swap(
    text: str,
    *,
    seed: int = 0,
    name: str = "",
    rate: float = 0.3,
    kinds: Collection[Kind] = KINDS,
    lexicon: Lexicon | None = None,
) -> tuple[str, list[Change]]:
    """Return a text with listed words swapped for others of their group, and the swaps, in order.

    Each distinct word that can be swapped is, everywhere, with probability `rate`, and at least one is; without any, the
    text comes back as it is, with no swaps. A word is never swapped for one that the text names too. Plurals, capitals
    and a/an follow along; "yes" and "no" are swapped only where the text begins with them. Draws depend on `seed`, `name`
    and the word.

    >>> swap("Two dogs sit on a bench.", seed=2, rate=1.0)[0]
    'Nine goats sit on a bed.'
    """
    lexicon = lexicon or english()
    places = [place for place in _places(text, lexicon) if place.entry.kind in kinds]
    named = {place.entry.word for place in places}
    free = {
        place.entry: [n for n in range(lexicon.size(place.entry)) if (*place.entry.word[:2], n) not in named]
        for place in places
    }
    draws = {entry.word: uniform(seed, name, str(entry.word), "swap") for entry, others in free.items() if others}
    taken = {word for word, draw in draws.items() if draw < rate or draw == min(draws.values())}
    changes = []
    for entry, start, end in places:
        if entry.word in taken:
            others = free[entry]
            now = lexicon.instead(entry, others[key(seed, name, str(entry.word), "replacement") % len(others)])
            changes.append(Change(entry.kind, start, end, text[start:end], _like(text[start], now)))
    changes = _with_articles(text, changes)
    swapped = text
    for change in reversed(changes):
        swapped = swapped[: change.start] + change.now + swapped[change.end :]
    return swapped, changes


def _places(text: str, lexicon: Lexicon) -> list[_Place]:
    found, places, at = words(text), [], 0
    while at < len(found):
        for size in range(min(lexicon.longest, len(found) - at), 0, -1):
            some = found[at : at + size]
            entry = lexicon.get([word.text.lower() for word in some])
            if entry and _joined(text, some) and (entry.kind != "verdict" or at == 0):
                places.append(_Place(entry, some[0].start, some[-1].end))
                at += size
                break
        else:
            at += 1
    return places


def _joined(text: str, some: list[Word]) -> bool:
    return all(text[a.end : b.start].isspace() for a, b in itertools.pairwise(some))


def _like(first: str, now: str) -> str:
    return now[0].upper() + now[1:] if first.isupper() else now


def _with_articles(text: str, changes: list[Change]) -> list[Change]:
    """Return the changes with an "a" or "an" before a swapped word taken in where it has to change."""
    result = []
    for change in changes:
        before = words(text[: change.start])[-1:]
        article = before[0] if before else None
        if article and article.text.lower() in ("a", "an") and text[article.end : change.start].isspace():
            fitting = _like(article.text[0], "an" if _begins_with_a_vowel(change.now) else "a")
            if fitting != article.text:
                gap = text[article.end : change.start]
                was = text[article.start : change.end]
                change = Change(change.kind, article.start, change.end, was, f"{fitting}{gap}{change.now}")
        result.append(change)
    return result


def _begins_with_a_vowel(phrase: str) -> bool:
    lower = phrase.lower()
    return lower[0] in "aeiou" and not lower.startswith(_SOUNDS_LIKE_A_CONSONANT)


class Swapped:
    """Rejected answers by `swap`: what it needs is a seed."""

    method = "swap"

    def __init__(
        self, *, seed: int = 0, rate: float = 0.3, kinds: Collection[Kind] = KINDS, lexicon: Lexicon | None = None
    ) -> None:
        strange = [kind for kind in kinds if kind not in KINDS]
        if strange:
            raise UserError(unknown("kind of words", str(strange[0]), KINDS))
        if not 0 < rate <= 1 or not kinds:
            raise UserError(
                f"A swap needs a rate above 0 and up to 1, and at least one kind; got {rate} and {list(kinds)}."
            )
        self.seed, self.rate, self.kinds, self.lexicon = seed, rate, tuple(kinds), lexicon or english()
        self.settings: Mapping[str, Any] = {
            "seed": seed,
            "rate": rate,
            "kinds": sorted(kinds),
            "words": self.lexicon.digest,
        }

    def build(self, exchanges: Sequence[Exchange]) -> Iterator[tuple[int, Made]]:
        """Yield each answer with words swapped, and the swaps; an answer without a listed word is unfit."""
        for number, exchange in enumerate(exchanges):
            name = digest([exchange.prompt[-1].text, exchange.answer])
            text, changes = swap(
                exchange.answer, seed=self.seed, name=name, rate=self.rate, kinds=self.kinds, lexicon=self.lexicon
            )
            swaps = [{"kind": change.kind, "was": change.was, "now": change.now} for change in changes]
            yield number, Made(text, {"swaps": swaps}, unfit="" if swaps else "no listed word stands in the answer")

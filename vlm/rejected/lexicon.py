"""Words that can stand for one another and mean another thing: the lists of the rule-based injector."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from palate.checking import digest
from palate.errors import UserError, unknown
from vlm.evaluate.words import words

Kind = Literal["object", "attribute", "relation", "count", "verdict"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Lists = Mapping[str, Mapping[str, Sequence[str]]]
"""Kind -> name of a group -> its words. "sofa/couch" are one word with two names, of which the first replaces others;
"knife|knives" gives a plural that rules would miss."""


@dataclass(frozen=True)
class Entry:
    """What a phrase of the lists is: the word `number` of a group of a kind, in the singular or the plural."""

    kind: Kind
    group: str
    number: int
    plural: bool

    @property
    def word(self) -> tuple[str, str, int]:
        """What singular and plural, and all names of one thing, have in common."""
        return self.kind, self.group, self.number


class Lexicon:
    """Phrases by their words, and the groups in which one may stand for another."""

    def __init__(self, lists: Lists) -> None:
        self._entries: dict[tuple[str, ...], Entry] = {}
        self._groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for kind, groups in lists.items():
            if kind not in KINDS:
                raise UserError(unknown("kind of words", str(kind), KINDS))
            for group, listed in groups.items():
                forms = [[_forms(kind, name) for name in word.split("/")] for word in listed]
                if len(forms) < 2:
                    raise UserError(f"The group {group!r} of {kind} needs two words or more, to swap one for another.")
                self._groups[kind, group] = [names[0] for names in forms]
                for number, one, many in ((k, *name) for k, names in enumerate(forms) for name in names):
                    self._add(one, Entry(kind, group, number, plural=False))  # type: ignore[arg-type]
                    if many != one:
                        self._add(many, Entry(kind, group, number, plural=True))  # type: ignore[arg-type]
        self.longest = max(map(len, self._entries))
        self.digest = digest([json.dumps(lists, sort_keys=True)])

    def _add(self, phrase: str, entry: Entry) -> None:
        key = tuple(word.text.lower() for word in words(phrase))
        if not key or key in self._entries:
            raise UserError(f"{phrase!r} of {entry.kind} ({entry.group}) is empty, or stands in the lists already.")
        self._entries[key] = entry

    def get(self, phrase: Sequence[str]) -> Entry | None:
        """Return what a phrase, given as words in lower case, is in the lists; None if it is not in them."""
        return self._entries.get(tuple(phrase))

    def size(self, entry: Entry) -> int:
        """Return how many words the group of a phrase has."""
        return len(self._groups[entry.kind, entry.group])

    def instead(self, entry: Entry, number: int) -> str:
        """Return another word of a phrase's group, in its number."""
        return self._groups[entry.kind, entry.group][number][entry.plural]


def _forms(kind: str, word: str) -> tuple[str, str]:
    one, _, many = word.partition("|")
    return one, many or (plural(one) if kind == "object" else one)


def plural(noun: str) -> str:
    """Return the regular plural of a noun, of its last word where it has several."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


@cache
def english() -> Lexicon:
    """Return the lists that ship with palate."""
    return Lexicon(json.loads(resources.files("vlm.rejected").joinpath("words.json").read_text(encoding="utf-8")))


def read_lexicon(path: str | Path) -> Lexicon:
    """Return the lists of a JSON file {kind: {group: [words]}}, as `vlm/rejected/words.json` has them."""
    try:
        lists = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The word lists in {path} cannot be read: {error}") from None
    fits = isinstance(lists, dict) and all(isinstance(groups, dict) for groups in lists.values())
    listed = [words for groups in lists.values() for words in groups.values()] if fits else []
    if not listed or not all(isinstance(some, list) and all(isinstance(w, str) for w in some) for some in listed):
        raise UserError(
            f"The word lists in {path} have the form {{kind: {{group: [words]}}}}, kinds {', '.join(KINDS)}."
        )
    return Lexicon(lists)

"""Which objects a text names, and where: phrases of a list of synonyms, longest first, in singular or plural."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from palate.errors import UserError
from vlm.evaluate.words import Word, singular, words

# The hard-coded cases of CHAIR's script (Rohrbach et al., 2018, github.com/LisaAnne/Hallucination): "baby bird" is no
# person, "passenger train" neither, "toilet seat" no chair; and what is no object at all ("home plate" is no dish).
_YOUNG = ("baby", "adult")
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
_CARRIERS = ("jet", "train")
_NO_OBJECT = ("home plate", "street light", "hot plate", "license plate", "computer desk", "traffic jam")


@dataclass(frozen=True)
class Mention:
    """An object's name, and the place text[start:end] of the phrase that names it."""

    name: str
    start: int
    end: int


class Vocabulary:
    """Objects and their synonyms, found in texts.

    synonyms: name -> phrases for it; the name itself is one of them.
    silent: phrases that look like objects and are none; they shadow the shorter phrases inside them.

    >>> vocabulary = Vocabulary({"hot dog": ["hotdog"], "dog": ["puppy"], "cat": []})
    >>> [m.name for m in vocabulary.find("Puppies chase two cats past a hot dog stand.")]
    ['dog', 'cat', 'hot dog']
    """

    def __init__(self, synonyms: Mapping[str, Iterable[str]], silent: Iterable[str] = ()) -> None:
        if not synonyms:
            raise UserError("A vocabulary needs at least one object.")
        self.names = tuple(synonyms)
        self._phrases: dict[tuple[str, ...], str] = {}
        for name, others in synonyms.items():
            for phrase in (name, *others):
                key = _key(words(phrase))
                if not key:
                    raise UserError(f"{phrase!r}, a synonym of {name!r}, holds no word.")
                if self._phrases.setdefault(key, name) != name:
                    raise UserError(f"{phrase!r} stands for both {self._phrases[key]!r} and {name!r}. Keep one.")
        for phrase in silent:
            self._phrases.setdefault(_key(words(phrase)), "")
        self._longest = max(map(len, self._phrases))

    def find(self, text: str) -> list[Mention]:
        """Return every mention of an object in a text, in order, repeated ones too."""
        found, mentions, at = words(text), [], 0
        keys = [singular(word.text.lower()) for word in found]
        while at < len(found):
            for size in range(min(self._longest, len(found) - at), 0, -1):
                name = self._phrases.get(tuple(keys[at : at + size]))
                if name is not None:
                    if name:
                        mentions.append(Mention(name, found[at].start, found[at + size - 1].end))
                    at += size
                    break
            else:
                at += 1
        return mentions

    def name(self, phrase: str) -> str | None:
        """Return the object that a phrase names, None if it names none of the vocabulary."""
        return self._phrases.get(_key(words(phrase))) or None


def _key(phrase: Iterable[Word]) -> tuple[str, ...]:
    return tuple(singular(word.text.lower()) for word in phrase)


@cache
def coco() -> Vocabulary:
    """Return the 80 objects of COCO with the synonyms that ship with palate (our own list, not CHAIR's)."""
    text = resources.files("vlm.evaluate").joinpath("coco_objects.txt").read_text(encoding="utf-8")
    return _with_chair_rules(_lines(text, "coco_objects.txt"))


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Return the vocabulary of a file with a line for each object: its name, then its synonyms, with commas between.

    CHAIR's own synonyms.txt is such a file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list of synonyms {path} cannot be read: {error}") from None
    return _with_chair_rules(_lines(text, str(path)))


def _lines(text: str, name: str) -> dict[str, list[str]]:
    synonyms: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        first, *others = dict.fromkeys(part.strip() for part in line.split(",") if part.strip()) or [""]
        if not first:
            continue
        if first in synonyms:
            raise UserError(f"{name}, line {number}: {first!r} has a line already. Join the two.")
        synonyms[first] = others
    return synonyms


def _with_chair_rules(synonyms: dict[str, list[str]]) -> Vocabulary:
    """Return the vocabulary with CHAIR's special cases, as far as its objects are concerned."""
    owners = {phrase: name for name, others in synonyms.items() for phrase in (name, *others)}
    special = {f"{young} {animal}": animal for young in _YOUNG for animal in _ANIMALS}
    special |= {f"passenger {carrier}": carrier for carrier in _CARRIERS} | {"toilet seat": "toilet"}
    silent = list(_NO_OBJECT)
    for phrase, head in special.items():
        if head not in owners:
            silent.append(phrase)
        elif phrase not in owners:
            synonyms[owners[head]].append(phrase)
    return Vocabulary(synonyms, silent)

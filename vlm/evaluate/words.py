"""Words of an English text with their places, and nouns in the singular: all that counting objects needs of grammar.

The singular is made by rules and a list of exceptions, without a dictionary or a tagger: equal text gives equal words on
every machine. What the tools of the published benchmarks do otherwise is said in docs/vlm-evaluation.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")

_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "oxen": "ox",
    "dice": "die",
    "axes": "axe",
    "lice": "louse",
    "cacti": "cactus",
    "knives": "knife",
    "lives": "life",
    "wives": "wife",
    "leaves": "leaf",
    "shelves": "shelf",
    "calves": "calf",
    "loaves": "loaf",
    "wolves": "wolf",
    "halves": "half",
    "scarves": "scarf",
    "elves": "elf",
    "hooves": "hoof",
    "thieves": "thief",
    "selves": "self",
    "bookshelves": "bookshelf",
    "wharves": "wharf",
    "sheaves": "sheaf",
    "quizzes": "quiz",
    "lenses": "lens",
    "gases": "gas",
    "irises": "iris",
    "atlases": "atlas",
    "pancreases": "pancreas",
    "canvases": "canvas",
    "christmases": "christmas",
    "uses": "use",
    "fuses": "fuse",
    "ruses": "ruse",
    "aches": "ache",
    "headaches": "headache",
    "caches": "cache",
    "quiches": "quiche",
    "mustaches": "mustache",
    "moustaches": "moustache",
    "avalanches": "avalanche",
    "niches": "niche",
    "axles": "axle",
    "tomatoes": "tomato",
    "potatoes": "potato",
    "heroes": "hero",
    "echoes": "echo",
    "mangoes": "mango",
    "volcanoes": "volcano",
    "mosquitoes": "mosquito",
    "buffaloes": "buffalo",
    "dominoes": "domino",
    "torpedoes": "torpedo",
    "cargoes": "cargo",
    "tornadoes": "tornado",
    "flamingoes": "flamingo",
    **{w + "s": w for w in ("tie", "pie", "die", "lie", "movie", "cookie", "zombie", "selfie", "smoothie", "hoodie")},
    **{
        w + "s": w for w in ("genie", "brownie", "necktie", "bowtie", "calorie", "collie", "magpie", "birdie", "veggie")
    },
    **{w + "s": w for w in ("menu", "emu", "tutu", "gnu", "ski", "taxi", "kiwi", "bikini", "safari", "deli", "emoji")},
    **{w + "s": w for w in ("zucchini", "panini", "sari", "jacuzzi", "tsunami", "yeti", "rabbi", "igloo", "bayou")},
}
_UNCHANGED = frozenset(
    {"series", "species", "lens", "gas", "news", "atlas", "canvas", "christmas", "chaos", "bias", "pancreas", "yes"}
    | {"his", "was", "has", "as", "does", "goes", "always", "perhaps", "is", "this", "us", "thus"}
)
_ENDINGS = (  # the first that fits decides: (what the word ends with, letters to drop, letters to add)
    (("ss", "us", "is"), 0, ""),
    (("sses", "xes", "ches", "shes", "zzes"), 2, ""),
    (("ouses", "auses"), 1, ""),  # houses, causes
    (("uses",), 2, ""),  # buses
    (("ies",), 3, "y"),
    (("s",), 1, ""),
)


@dataclass(frozen=True)
class Word:
    """A word as it stands at text[start:end]."""

    text: str
    start: int
    end: int


def words(text: str) -> list[Word]:
    """Return the words of a text in order: letters, and hyphens between letters; "dog's" is "dog" and "s"."""
    return [Word(match.group(), *match.span()) for match in _WORD.finditer(text)]


def singular(word: str) -> str:
    """Return a noun in the singular, in the case it was given; what is no plural stays as it is.

    >>> [singular(w) for w in ("dogs", "buses", "benches", "knives", "grass", "Trees")]
    ['dog', 'bus', 'bench', 'knife', 'grass', 'Tree']
    """
    head, hyphen, last = word.rpartition("-")
    if hyphen:
        return f"{head}-{singular(last)}"
    lower = word.lower()
    if lower in _IRREGULAR:
        form = _IRREGULAR[lower]
        return form.capitalize() if word[0].isupper() else form
    if lower in _UNCHANGED or len(word) < 3:
        return word
    for endings, drop, add in _ENDINGS:
        if lower.endswith(endings):
            return word[: len(word) - drop] + add
    return word


def length(text: str) -> int:
    """Return the number of words between spaces: the length that is reported beside hallucination."""
    return len(text.split())

"""Who writes wrong descriptions in the toy world: it knows which things go together, and sees no picture.

It stands where users put a language model or an endpoint, so that POVID's and BPO's builders run on the toy as they do
elsewhere; and it makes the controls, whose wrong answers know nothing of what models tend to hallucinate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from palate.conversations import Exchange
from palate.randomness import key
from palate.toy.scenes import THINGS, Thing, absent_partners, sentence
from palate.toy.vlm_truth import judge
from vlm.answering import Answer, Ask
from vlm.rejected import Made

How = Literal["partner", "rewrite", "random", "swap"]


def _partner(things: Sequence[Thing], rng: np.random.Generator) -> list[Thing]:
    """An absent partner named too, as POVID injects what is often seen together; without one, a thing swapped."""
    tempting = absent_partners(things)
    return [*things, _any(tempting, rng)] if tempting else _swap(things, rng)


def _rewrite(things: Sequence[Thing], rng: np.random.Generator) -> list[Thing]:
    """Most things swapped, as BPO rewrites details of most sentences, and by absent partners where there are any."""
    changed = list(things)
    for place in range(len(things)):
        if place == 0 or rng.random() < 0.5:
            left = _absent([*changed, *things])
            tempting = absent_partners(changed)
            changed[place] = _any([thing for thing in left if thing in tempting] or left, rng)
    return changed


def _random(things: Sequence[Thing], rng: np.random.Generator) -> list[Thing]:
    """Any absent thing named too."""
    return [*things, _any(_absent(things), rng)]


def _swap(things: Sequence[Thing], rng: np.random.Generator) -> list[Thing]:
    """One thing swapped for any absent one: the length stays."""
    changed = list(things)
    changed[int(rng.integers(len(changed)))] = _any(_absent(things), rng)
    return changed


CHANGES: dict[How, Callable[[Sequence[Thing], np.random.Generator], list[Thing]]] = {
    "partner": _partner,
    "rewrite": _rewrite,
    "random": _random,
    "swap": _swap,
}


def changed(text: str, how: How, seed: int) -> str:
    """The description of other things than those that a text names: a function of the three arguments."""
    named = tuple(dict.fromkeys(mention.thing for mention in judge(text, ()).mentions))
    rng = np.random.default_rng(key(seed, " ".join(map(str, named)), how, "toy writer"))
    return sentence(CHANGES[how](named, rng) if named else [_any(THINGS, rng)])


class ToyWriter:
    """An `Answerer`: it looks for things in what it is asked, and describes changed ones."""

    def __init__(self, how: How, seed: int = 0) -> None:
        self.how, self.seed = how, seed
        self.settings: Mapping[str, Any] = {"writer": "toy", "how": how, "seed": seed}

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer]]:
        """Yield (number of the ask, the description)."""
        for number, ask in enumerate(asks):
            yield number, Answer(changed(ask.messages[-1].text, self.how, self.seed), finish="stop")


class Control:
    """A `Builder` of wrong descriptions that are not what models tend to say: a random thing injected, or one swapped."""

    def __init__(self, how: Literal["random", "swap"], seed: int = 0) -> None:
        self.how, self.seed = how, seed
        self.method = f"toy-{how}"
        self.settings: Mapping[str, Any] = {"seed": seed}

    def build(self, exchanges: Sequence[Exchange]) -> Iterator[tuple[int, Made]]:
        """Yield (number of the exchange, the wrong description)."""
        for number, exchange in enumerate(exchanges):
            yield number, Made(changed(exchange.answer, self.how, self.seed))


def _absent(things: Sequence[Thing]) -> list[Thing]:
    return [thing for thing in THINGS if thing not in things]


def _any(things: Sequence[Thing], rng: np.random.Generator) -> Thing:
    return things[int(rng.integers(len(things)))]

"""Scorers that read an image and a prompt together: every distinct pair of the two is judged once, and kept."""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rewards.protocol import ScoreBatch
from rewards.rows import Rows
from rewards.stages import Scores, StagedScorer, Work

if TYPE_CHECKING:
    from PIL import Image

    from rewards.cache import Cache


class Answer(NamedTuple):
    """What a scorer says of one pair: a value, or why there is none."""

    value: float
    failure: str = ""
    truncated: bool = False


class PairScorer(StagedScorer):
    """A scorer with a value for each (image, prompt). Subclasses say `answers`, and set the fields."""

    weights: str
    preprocess: str
    dtype: str = "float32"
    reads: str = ""
    """What decides a value besides weights, preprocess and dtype (a question, a tokenizer); part of the cache key."""
    batch_size: int = 64
    cache: Cache | None = None

    @abstractmethod
    def answers(self, inputs: list[Any], of: Sequence[int], prompts: Sequence[str]) -> list[Answer]:
        """Return an answer for each pair (inputs[of[k]], prompts[k]). inputs: what `prepare` made of the pictures."""

    @property
    def prepare(self) -> Callable[[Image.Image], Any]:
        """What a picture is made into before `answers` sees it."""
        return as_it_is

    def begin(self, rows: Rows) -> PairAnswers:
        return PairAnswers(self, rows)

    def finish(self, rows: Rows, work: Work) -> ScoreBatch:
        assert isinstance(work, PairAnswers)
        scores = Scores(rows, self.needs_prompt, work.refused)
        truncated = set()
        for row in np.flatnonzero(scores.ok).tolist():
            answer = work.found[int(rows.image_of[row]), int(rows.prompt_of[row])]
            scores.values[row] = answer.value
            if answer.failure:
                scores.fail([row], answer.failure)
            elif answer.truncated:
                truncated.add(row)
        return scores.batch(
            scorer=self.name,
            unit=self.unit,
            weights=self.weights,
            preprocess=self.preprocess,
            dtype=self.dtype,
            truncated=frozenset(truncated),
        )


class PairAnswers(Work):
    """The answers for the distinct (image, prompt) pairs of some rows."""

    def __init__(self, scorer: PairScorer, rows: Rows) -> None:
        self.key = ("pairs", id(scorer))
        self.prepare, self.batch_size, self.refused = scorer.prepare, scorer.batch_size, {}
        self.found: dict[tuple[int, int], Answer] = {}
        self._scorer, self._rows = scorer, rows
        self._todo: dict[int, list[int]] = {}

    def start(self) -> Sequence[int]:
        rows = self._rows
        pairs = np.stack([rows.image_of, rows.prompt_of], 1)[(rows.image_of >= 0) & (rows.prompt_of >= 0)]
        distinct = [(int(image), int(prompt)) for image, prompt in np.unique(pairs, axis=0)]
        cache = self._scorer.cache
        kept = cache.get([self._name(pair) for pair in distinct]) if cache else {}
        for pair in distinct:
            if kept and (entry := kept.get(self._name(pair))):
                value, truncated = struct.unpack("<d?", entry)
                self.found[pair] = Answer(value, truncated=truncated)
            else:
                self._todo.setdefault(pair[0], []).append(pair[1])
        return list(self._todo)

    def take(self, indices: list[int], inputs: list[Any]) -> None:
        pairs = [(index, prompt) for index in indices for prompt in self._todo[index]]
        place = {index: number for number, index in enumerate(indices)}
        answers = self._scorer.answers(
            inputs, [place[index] for index, _ in pairs], [self._rows.prompts[prompt] for _, prompt in pairs]
        )
        self.found |= dict(zip(pairs, answers, strict=True))
        if self._scorer.cache:
            good = {p: a for p, a in zip(pairs, answers, strict=True) if not a.failure and np.isfinite(a.value)}
            self._scorer.cache.put({self._name(p): struct.pack("<d?", a.value, a.truncated) for p, a in good.items()})

    def _name(self, pair: tuple[int, int]) -> bytes:
        from rewards.cache import key

        scorer, (image, prompt) = self._scorer, pair
        made_by = (scorer.reads, scorer.preprocess, scorer.weights, scorer.dtype)
        return key("pair", self._rows.keys[image], self._rows.prompts[prompt], *made_by)


def as_it_is(picture: Image.Image) -> Image.Image:
    """Return the picture."""
    return picture

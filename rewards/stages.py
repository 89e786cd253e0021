"""Several scorers over the same rows: images are decoded once, resized once for each geometry, and encoded once for
each encoder, whoever asks.

A scorer that takes part (`StagedScorer`) says in `begin` what work its images need; equal work, told by its key, is
done once. `finish` turns the work into scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from palate.errors import UserError
from rewards.layouts import score_images
from rewards.protocol import ImageLike, ScoreBatch, ScoreMatrix, Scorer
from rewards.rows import Rows, cross, gather

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

T = TypeVar("T")
_MANY_BATCHES = 8  # From here on a progress bar is worth its line.


class Work(ABC):
    """What is to be done once to each of the rows' distinct images.

    key: equal for work that gives equal results. prepare: what a picture is made into first, in a thread; equal
    callables are called once for a picture, and may raise UserError. batch_size: how many images to hand over at once.
    refused: distinct image -> why `prepare` refused it.
    """

    key: Hashable
    prepare: Callable[[Image.Image], Any]
    batch_size: int
    refused: dict[int, str]

    @abstractmethod
    def start(self) -> Sequence[int]:
        """Return the distinct images that are needed; the others are known already, or shown to no prompt."""

    @abstractmethod
    def take(self, indices: list[int], inputs: list[Any]) -> None:
        """Use some of them."""


class StagedScorer(ABC):
    """A scorer whose work on images can be shared. Its subclasses are the built-in scorers."""

    name: str
    unit: str
    needs_prompt: bool = True
    """Whether a row without a prompt fails."""

    @abstractmethod
    def begin(self, rows: Rows) -> Work:
        """Return the work that the rows' images need. Cheap: it may turn out to be another scorer's, too."""

    @abstractmethod
    def finish(self, rows: Rows, work: Work) -> ScoreBatch:
        """Return the scores, once all images have been taken."""

    def score(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> ScoreBatch:
        """Return the score of each row (prompts[i], images[i]); see `rewards.protocol.Scorer`."""
        return _staged([self], gather(prompts, images))[0]

    def score_images(self, prompt: str, images: Sequence[ImageLike]) -> ScoreBatch:
        """Return the score of each image for one prompt."""
        return score_images(self, prompt, images)

    def score_matrix(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> ScoreMatrix:
        """Return the score of every prompt with every image, (P, I). P + I inputs are encoded, not P * I."""
        return ScoreMatrix(_staged([self], cross(prompts, images))[0], (len(prompts), len(images)))

    def score_tensor(self, prompts: Sequence[str], images: Tensor) -> Tensor:
        """Return (B,) float32 scores of images (B, 3, H, W) from 0 to 1, with gradients to the pixels.

        The values equal those of `score` on the same images rounded to 8 bits. UserError where a scorer has no such way.
        """
        raise UserError(f"{self.name} cannot be differentiated. Scorers of the CLIP family and ImageReward can.")


def score_together(scorers: Sequence[Scorer], prompts: Sequence[str], images: Sequence[ImageLike]) -> list[ScoreBatch]:
    """Return each scorer's batch over the rows (prompts[i], images[i]), with work that they have in common done once."""
    staged = [scorer for scorer in scorers if isinstance(scorer, StagedScorer)]
    ready = iter(_staged(staged, gather(prompts, images)) if staged else ())
    return [next(ready) if isinstance(s, StagedScorer) else s.score(prompts, images) for s in scorers]


def _staged(scorers: Sequence[StagedScorer], rows: Rows) -> list[ScoreBatch]:
    works = run([scorer.begin(rows) for scorer in scorers], rows)
    return [scorer.finish(rows, work) for scorer, work in zip(scorers, works, strict=True)]


def run(asked: Sequence[Work], rows: Rows) -> list[Work]:
    """Do the work, what is equal once, and return what was done for each that asked."""
    works: dict[Hashable, Work] = {}
    done = [works.setdefault(work.key, work) for work in asked]
    wanted = {key: frozenset(work.start()) for key, work in works.items()}
    indices = sorted(frozenset().union(*wanted.values()))
    ways = {work.prepare for key, work in works.items() if wanted[key]}

    def prepare(picture: Image.Image) -> dict[Callable[[Image.Image], Any], Any]:
        return {how: _attempt(how, picture) for how in ways}

    size = max(work.batch_size for work in works.values())
    batches = rows.decoded(prepare, size, indices)
    for found, inputs in watched(batches, -(-len(indices) // size), "images"):
        for key, work in works.items():
            mine = {i: each[work.prepare] for i, each in zip(found, inputs, strict=True) if i in wanted[key]}
            work.refused |= {i: str(each) for i, each in mine.items() if isinstance(each, UserError)}
            ready = [i for i in mine if i not in work.refused]
            if ready:
                work.take(ready, [mine[i] for i in ready])
    return done


def _attempt(how: Callable[[Image.Image], T], picture: Image.Image) -> T | UserError:
    """Return the error instead of raising it: what one geometry refuses, another may take."""
    try:
        return how(picture)
    except UserError as error:
        return error


class Scores:
    """The values (N,) and failures of a batch while they come together. At first: failures of images and of prompts.

    ok: (N,) bool, the rows to give a value.
    """

    def __init__(self, rows: Rows, needs_prompt: bool, refused: Mapping[int, str]) -> None:
        self.values = np.full(len(rows), np.nan)
        self._failures = dict(rows.failures)
        for image, reason in refused.items():
            self.fail(np.flatnonzero(rows.image_of == image), reason)
        if needs_prompt:
            self.fail(np.flatnonzero(rows.prompt_of < 0), "The prompt is empty.")
        self.ok = np.ones(len(rows), dtype=bool)
        self.ok[list(self._failures)] = False

    def fail(self, rows: Iterable[int], reason: str) -> None:
        """Give up on rows that have not failed yet."""
        for row in rows:
            self._failures.setdefault(int(row), reason)

    def batch(self, **made_by: Any) -> ScoreBatch:
        """Return the batch; a score that is not finite is a failure."""
        odd = np.flatnonzero(~np.isfinite(self.values))
        dtype = made_by.get("dtype", "float32")
        self.fail(odd, f"The model's answer is not a finite number in {dtype}. Load it with dtype='float32'.")
        self.values[list(self._failures)] = np.nan
        return ScoreBatch(self.values, failures=self._failures, **made_by)


def watched(batches: Iterable[T], count: int, words: str) -> Iterator[T]:
    """Yield the batches, with a progress bar on a terminal where there are many."""
    from tqdm import tqdm

    yield from tqdm(batches, words, count, unit="batch", disable=None if count >= _MANY_BATCHES else True)

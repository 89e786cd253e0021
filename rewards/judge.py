"""Scorers that ask a vision-language model: VQAScore, and a judge that rates one image or compares two."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palate.errors import UserError
from rewards.cache import Cache
from rewards.devices import Dtype
from rewards.pairs import Answer, PairScorer
from rewards.protocol import ImageLike, ScoreBatch
from rewards.rows import Rows, gather
from rewards.stages import watched
from rewards.vlm import Answerer, Endpoint, Question, Verdict, load_local

VQASCORE = 'Does this figure show "{prompt}"? Please answer Yes or No.'
RATE = (
    "This image was made for the request below.\n\nRequest: {prompt}\n\nHow well does it meet the request, in what it "
    "shows and in how it looks? 1: not at all. 2: poorly. 3: in part. 4: well. 5: perfectly. Answer with the digit only."
)
COMPARE = (
    "The first image is A, the second is B. Both were made for the request below.\n\nRequest: {prompt}\n\nWhich one "
    "meets the request better, in what it shows and in how it looks? Answer with the letter A or B only."
)
_SIDES = ("A", "B")


class Asker(PairScorer):
    """A scorer that asks a model one question for each pair, and reads a value off the verdict."""

    words: tuple[str, ...]

    def __init__(
        self, model: Answerer, name: str, question: str, *, batch_size: int = 8, cache: Cache | None = None
    ) -> None:
        self.name, self.batch_size, self.cache = name, batch_size, cache
        self.model, self._question = model, _checked(question)
        self.weights, self.dtype, self.reads = model.weights, model.dtype, question
        self.preprocess = "RGB, then the model's own"

    @abstractmethod
    def read(self, verdict: Verdict) -> Answer:
        """Return the value of a verdict over `words`."""

    @property
    def prepare(self) -> Callable[..., Any]:
        return self.model.prepare

    def answers(self, inputs: list[Any], of: Sequence[int], prompts: Sequence[str]) -> list[Answer]:
        questions = [_asked(self._question, prompt, inputs[index]) for index, prompt in zip(of, prompts, strict=True)]
        return [self.read(verdict) for verdict in self.model.ask(questions, self.words)]


class VQAScore(Asker):
    """P("Yes") to whether the image shows the prompt (2404.01291), among all first tokens of an answer."""

    unit, words = "probability", ("Yes",)

    def read(self, verdict: Verdict) -> Answer:
        return Answer(np.nan, verdict.failure) if verdict.failure else Answer(verdict.probabilities["Yes"])


class Judge(Asker):
    """A rating from 1 to 5: the mean of the digits under their probabilities. `prefer` compares two images instead.

    least: the share of probability that the verdicts must have together. Below it the model answered something else, and
    the row has no score.
    """

    unit, words = "rating", ("1", "2", "3", "4", "5")

    def __init__(
        self,
        model: Answerer,
        name: str,
        question: str = RATE,
        comparison: str = COMPARE,
        *,
        least: float = 0.5,
        batch_size: int = 8,
        cache: Cache | None = None,
    ) -> None:
        super().__init__(model, name, question, batch_size=batch_size, cache=cache)
        self._comparison, self._least = _checked(comparison), least
        self.reads = f"{question} at least {least}"

    def read(self, verdict: Verdict) -> Answer:
        shares, failure = self._shares(verdict, self.words)
        return Answer(np.nan, failure) if failure else Answer(float(shares @ [float(word) for word in self.words]))

    def prefer(self, prompts: Sequence[str], first: Sequence[ImageLike], second: Sequence[ImageLike]) -> ScoreBatch:
        """Return for each row the probability that the first image is the better one.

        Each pair is asked in both orders and the two are averaged, so that a liking for a place cancels.
        """
        one, two = gather(prompts, first), gather(prompts, second)
        values = np.full(len(one), np.nan)
        failures = dict.fromkeys(np.flatnonzero(one.prompt_of < 0).tolist(), "The prompt is empty.")
        starts = range(0, len(values), self.batch_size)
        for start in watched(starts, len(starts), f"{self.name}: pairs"):
            rows = [row for row in range(start, min(start + self.batch_size, len(values))) if one.prompt_of[row] >= 0]
            pictures = [self._pictures(side, rows) for side in (one, two)]
            ready = [row for row in rows if row not in one.failures and row not in two.failures]
            asked = []
            for row in ready:
                a, b = (p[int(side.image_of[row])] for p, side in zip(pictures, (one, two), strict=True))
                asked += [_asked(self._comparison, prompts[row], a, b), _asked(self._comparison, prompts[row], b, a)]
            verdicts = self.model.ask(asked, _SIDES) if asked else []
            for place, row in enumerate(ready):
                (there, why), (back, why_back) = (self._shares(v, _SIDES) for v in verdicts[2 * place : 2 * place + 2])
                if why or why_back:
                    failures[row] = why or why_back
                else:
                    values[row] = (there[0] + back[1]) / 2
        failures |= {row: f"Second image: {reason}" for row, reason in two.failures.items()} | one.failures
        return ScoreBatch(
            values, self.name, "P(first)", self.weights, self.preprocess, dtype=self.dtype, failures=failures
        )

    def _pictures(self, rows: Rows, wanted: Sequence[int]) -> dict[int, Any]:
        """Return distinct image -> prepared picture, for some rows."""
        images = sorted({int(rows.image_of[row]) for row in wanted} - {-1})
        batches = rows.decoded(self.prepare, max(len(images), 1), images)
        return {i: picture for indices, ready in batches for i, picture in zip(indices, ready, strict=True)}

    def _shares(self, verdict: Verdict, words: Sequence[str]) -> tuple[np.ndarray, str]:
        """Return the words' probabilities, made to sum to 1; or why there are none."""
        if verdict.failure:
            return np.empty(0), verdict.failure
        found = np.array([verdict.probabilities[word] for word in words])
        total = float(found.sum())
        if not total >= self._least or total == 0:
            return np.empty(0), (
                f"The model gave the verdicts {', '.join(words)} {100 * total:.1f} % of its probability; at least "
                f"{100 * self._least:g} % is asked. It answered something else."
            )
        return found / total, ""


def load_vqascore(
    source: str | None = None,
    *,
    question: str = VQASCORE,
    url: str | None = None,
    key_env: str | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    batch_size: int = 8,
    cache: str | Path | None = None,
) -> VQAScore:
    """Return VQAScore on any chat model of images and text. Its numbers belong to the model that gives them.

    source: a folder or hub id of transformers, or, with `url`, the name of the model behind an OpenAI-compatible endpoint.
    question: what is asked; it holds {prompt}. url, key_env: the endpoint, and the variable that holds its key.
    """
    model = _model(source, url, key_env, dtype, device, batch_size, cache)
    kept = Cache(cache) if cache else None
    return VQAScore(model, f"vqascore:{model.label}", question, batch_size=batch_size, cache=kept)


def load_judge(
    source: str | None = None,
    *,
    question: str = RATE,
    comparison: str = COMPARE,
    least: float = 0.5,
    url: str | None = None,
    key_env: str | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    batch_size: int = 8,
    cache: str | Path | None = None,
) -> Judge:
    """Return a judge on any chat model of images and text: `score` rates from 1 to 5, `prefer` compares two images.

    source, url, key_env: as in `load_vqascore`. question, comparison: what is asked, with {prompt}. least: see `Judge`.
    """
    model = _model(source, url, key_env, dtype, device, batch_size, cache)
    kept = Cache(cache) if cache else None
    name = f"vlm-judge:{model.label}"
    return Judge(model, name, question, comparison, least=least, batch_size=batch_size, cache=kept)


def _model(
    source: str | None,
    url: str | None,
    key_env: str | None,
    dtype: Dtype | None,
    device: str | None,
    batch_size: int,
    cache: str | Path | None,
) -> Answerer:
    if not source:
        raise UserError("Which model? Give source=FOLDER or a hub id, or with url= the name of the endpoint's model.")
    if url is None:
        return load_local(source, dtype=dtype, device=device, batch_size=batch_size)
    from palate.endpoint import ChatClient

    return Endpoint(ChatClient(url, source, key_env=key_env, cache=Path(cache) / "replies" if cache else None))


def _asked(question: str, prompt: str, *pictures: Any) -> Question:
    return Question(question.replace("{prompt}", prompt), pictures)


def _checked(question: str) -> str:
    if "{prompt}" not in question:
        raise UserError(f"The question must say where the prompt goes, with {{prompt}}; got {question!r}.")
    return question

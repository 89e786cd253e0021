"""Models that answer a voter's own prompt: diffusers pipelines and vision-language models behind one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from PIL import Image

from apps.arena.packs.format import check_name
from apps.arena.settings import Live
from palate.errors import UserError
from palate.records import Media


class Maker(Protocol):
    """A model that takes part in live battles."""

    name: str
    kind: Literal["image", "text"]

    def make(self, prompt: str, question: Media | None, seed: int) -> Image.Image | str:
        """Return the output to a prompt, or to a question about a picture. Raises UserError where there is none."""
        ...


class ImageMaker:
    """A diffusers pipeline."""

    kind: Literal["image", "text"] = "image"

    def __init__(self, name: str, pipeline: Any, settings: Live) -> None:
        self.name, self._pipeline, self._settings = name, pipeline, settings

    def make(self, prompt: str, question: Media | None, seed: int) -> Image.Image:
        from t2i.sample import generate

        steps, guidance = self._settings.steps, self._settings.guidance
        [sample] = generate(self._pipeline, [prompt], [seed], steps=steps, guidance=guidance)
        if sample.flagged:
            raise UserError("A picture was blacked out by the safety checker. Try another prompt.")
        return sample.image


class AnswerMaker:
    """A vision-language model."""

    kind: Literal["image", "text"] = "text"

    def __init__(self, name: str, loaded: Any, settings: Live) -> None:
        self.name, self._loaded, self._settings = name, loaded, settings

    def make(self, prompt: str, question: Media | None, seed: int) -> str:
        from palate.conversations import Message
        from vlm.answering import Ask
        from vlm.generate import LocalAnswerer

        images = () if question is None else (question,)
        answerer = LocalAnswerer(
            self._loaded,
            batch_size=1,
            max_new_tokens=self._settings.answer_tokens,
            temperature=self._settings.temperature,
            seed=seed,
        )
        [(_, answer)] = answerer.answer([Ask("live", (Message.user(prompt, len(images)),), images)])
        if not answer.text:
            raise UserError(answer.failure or "A model had no answer. Try another question.")
        return answer.text


def load_makers(pipelines: Sequence[str], answerers: Sequence[str], settings: Live) -> list[Maker]:
    """Return the models named as NAME=MODEL. Raises UserError where fewer than two of a kind, or none, can be loaded."""
    makers: list[Maker] = []
    for words, load in ((pipelines, _pipeline), (answerers, _answerer)):
        named = [_split(word) for word in words]
        if len(named) == 1:
            raise UserError(f"One live model cannot battle itself; got only {named[0][0]}. Name a second one.")
        makers += [load(name, source, settings) for name, source in named]
    names = [maker.name for maker in makers]
    if len(set(names)) < len(names):
        raise UserError(f"Two live models have one name: {', '.join(sorted(names))}.")
    return makers


def _pipeline(name: str, source: str, settings: Live) -> Maker:
    from t2i.sample import load_pipeline

    return ImageMaker(name, load_pipeline(source), settings)


def _answerer(name: str, source: str, settings: Live) -> Maker:
    import torch

    from vlm.loading import load_model

    on_gpu = torch.cuda.is_available()
    loaded = load_model(source, dtype="bf16" if on_gpu else "fp32")
    loaded.model.to("cuda" if on_gpu else "cpu")
    return AnswerMaker(name, loaded, settings)


def _split(word: str) -> tuple[str, str]:
    name, sign, source = word.partition("=")
    if not sign or not source:
        raise UserError(f"'{word}' should read NAME=MODEL, such as base=toy:sd.")
    return check_name(name), source

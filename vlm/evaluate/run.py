"""Questions of a benchmark -> a model's answers -> its figures; resumable, or at once as a callback in training."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from palate.conversations import Message
from palate.errors import UserError
from palate.records import Media
from vlm.answering import Answerer, Ask, answer_file
from vlm.evaluate.result import Benchmark, Question, Result, write_result

if TYPE_CHECKING:
    from vlm.loading import Loaded

Pictures = Callable[[str], Media]
"""Name of an image -> the image."""


def folder_of(images: str | Path) -> Pictures:
    """Return what finds a benchmark's images in a folder."""
    root = Path(images)
    if not root.is_dir():
        raise UserError(f"There is no folder of images at {root}.")
    return lambda name: Media.image(root / name)


def asks_of(questions: Sequence[Question], pictures: Pictures, *, limit: int = 0, instruction: str = "") -> list[Ask]:
    """Return the questions as asks with their images: the first so many (0: all), each with a sentence after it.

    Missing files are counted before anything is asked (UserError).
    """
    some = list(islice(questions, limit or None))
    media = {name: pictures(name) for name in dict.fromkeys(question.image for question in some)}
    missing = [media[name].path for name in media if media[name].path and not Path(str(media[name].path)).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(media)} images are missing, the first is {missing[0]}. Download the "
            "benchmark's images, or name another folder."
        )
    return [
        Ask(q.id, (Message.user(" ".join(filter(None, (q.text, instruction))), 1),), (media[q.image],)) for q in some
    ]


def run_benchmark(
    benchmark: Benchmark,
    answerer: Answerer,
    pictures: Pictures,
    path: str | Path,
    *,
    limit: int = 0,
    instruction: str = "",
    progress: str | None = None,
) -> None:
    """Answer what the file does not answer yet (`vlm.answering.answer_file`)."""
    asks = asks_of(benchmark.questions, pictures, limit=limit, instruction=instruction)
    answer_file(answerer, asks, path, progress=progress)


def evaluate(
    benchmark: Benchmark, answerer: Answerer, pictures: Pictures, *, limit: int = 0, instruction: str = ""
) -> Result:
    """Return a model's figures without keeping its answers. Questions that cannot be answered are left out and counted."""
    asks = asks_of(benchmark.questions, pictures, limit=limit, instruction=instruction)
    answers = {asks[k].id: answer.text for k, answer in answerer.answer(asks) if not answer.failure}
    return benchmark.score(answers)


def measure(
    benchmark: Benchmark,
    pictures: Pictures,
    *,
    limit: int = 0,
    batch_size: int = 8,
    max_new_tokens: int | None = None,
    instruction: str = "",
) -> Callable[[Loaded, Path, int], dict[str, float]]:
    """Return what measures a model while it trains: a `vlm.method.Measure`. It writes the result into the folder, too.

    pope = read_pope("coco_pope_random.json")
    train(config, resolved, measures=[measure(pope, folder_of("val2014"), limit=300)])
    """

    def measured(loaded: Loaded, folder: Path, step: int) -> dict[str, float]:
        from vlm.generate import LocalAnswerer

        answerer = LocalAnswerer(
            loaded, batch_size=batch_size, max_new_tokens=max_new_tokens or benchmark.max_new_tokens
        )
        result = evaluate(benchmark, answerer, pictures, limit=limit, instruction=instruction)
        if int(os.environ.get("RANK", "0")) == 0:
            write_result(folder / f"{result.benchmark.replace(' ', '-')}.json", result)
        return result.metrics()

    return measured

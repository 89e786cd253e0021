"""Questions of a benchmark -> a model's answers -> its figures; resumable, or at once as a callback in training."""

from __future__ import annotations

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
    from vlm.settings import BenchmarksConfig

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
    return benchmark.score(_texts(answerer, asks))


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

    Of several processes, which must hold the same weights, each answers its share.

    pope = read_pope("coco_pope_random.json")
    train(config, resolved, measures=[measure(pope, folder_of("val2014"), limit=300)])
    """

    def measured(loaded: Loaded, folder: Path, step: int) -> dict[str, float]:
        import torch.distributed as processes

        from vlm.generate import LocalAnswerer

        together = processes.is_available() and processes.is_initialized()
        rank, count = (processes.get_rank(), processes.get_world_size()) if together else (0, 1)
        answerer = LocalAnswerer(
            loaded, batch_size=batch_size, max_new_tokens=max_new_tokens or benchmark.max_new_tokens
        )
        asks = asks_of(benchmark.questions, pictures, limit=limit, instruction=instruction)
        # Whole batches are dealt out, so that an answer does not depend on the number of processes.
        found = [_texts(answerer, [ask for k, ask in enumerate(asks) if k // batch_size % count == rank])]
        if together:
            mine, found = found[0], [{} for _ in range(count)]
            processes.all_gather_object(found, mine)
        result = benchmark.score({key: text for texts in found for key, text in texts.items()})
        if rank == 0:
            write_result(folder / f"{result.benchmark.replace(' ', '-')}.json", result)
        return result.metrics()

    return measured


def measures_of(
    settings: BenchmarksConfig, *, batch_size: int = 8
) -> list[Callable[[Loaded, Path, int], dict[str, float]]]:
    """Return what the settings want measured at every evaluation (`measure`). Raises UserError for missing files."""
    from vlm.evaluate.amber import read_amber
    from vlm.evaluate.opening import open_chair, open_pope
    from vlm.evaluate.toy import toy_picture

    wanted: list[tuple[Benchmark, bool]] = []
    if settings.pope:
        wanted.append(open_pope(settings.pope))
    if settings.chair:
        wanted.append(open_chair(settings.chair))
    if settings.amber:
        wanted.append((read_amber(Path(settings.amber), "generative"), False))
    if wanted and not settings.every:
        raise UserError("A benchmark is to be measured at every evaluation, and --eval.every 0 allows none.")
    made = []
    for benchmark, toy in wanted:
        if not (toy or settings.image_root):
            raise UserError(f"--eval.image_root is missing: name the folder of the images of {benchmark.name}.")
        pictures = toy_picture if toy else folder_of(settings.image_root)
        asks_of(benchmark.questions, pictures, limit=settings.questions)  # missing images, before a model is loaded
        made.append(measure(benchmark, pictures, limit=settings.questions, batch_size=batch_size))
    return made


def _texts(answerer: Answerer, asks: Sequence[Ask]) -> dict[str, str]:
    """Return what was answered, by the id of the ask; failures are left out."""
    return {asks[k].id: answer.text for k, answer in answerer.answer(asks) if not answer.failure}

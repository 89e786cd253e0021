"""Rows to score: checked, and reduced to what is distinct, so that no prompt and no image is encoded twice."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from palate.errors import UserError
from palate.records import Media
from rewards.pictures import content_id, held, is_tensor, picture
from rewards.protocol import ImageLike

T = TypeVar("T")
_AHEAD = 2  # batches that are decoded while the model works on another


@dataclass
class Rows:
    """N rows over distinct prompts and distinct images.

    prompts, images: the distinct ones; images stay encoded until they are asked for. keys: content id of each image.
    prompt_of, image_of: (N,) index of each row's prompt and image; -1 where the prompt is empty, the image unreadable.
    failures: row -> why its image cannot be read.
    """

    prompts: list[str]
    images: list[Media | Image.Image]
    keys: list[str]
    prompt_of: np.ndarray
    image_of: np.ndarray
    failures: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt_of)

    @property
    def ok(self) -> np.ndarray:
        """(N,) bool: the rows whose image has not failed."""
        return self.image_of >= 0

    def fail_image(self, image: int, reason: str) -> None:
        """Give up on every row of a distinct image."""
        rows = np.flatnonzero(self.image_of == image)
        self.failures.update(dict.fromkeys(rows.tolist(), reason))
        self.image_of[rows] = -1

    def by_image(self) -> list[np.ndarray]:
        """Return, for each distinct image, the rows that show it and have not failed."""
        order = np.argsort(self.image_of, kind="stable")
        ends = np.searchsorted(self.image_of[order], np.arange(len(self.images) + 1))
        return [order[first:last] for first, last in itertools.pairwise(ends)]

    def decoded(
        self, prepare: Callable[[Image.Image], T], batch_size: int, wanted: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], list[T]]]:
        """Yield `(indices, prepare(picture) of each)` of the wanted distinct images (None: all), in batches.

        An image that is unreadable, or that `prepare` refuses with a UserError, fails its rows. Decoding runs ahead in
        threads while the caller works: PIL frees the interpreter.
        """

        def load(index: int) -> T | _Failure:
            try:
                return prepare(picture(self.images[index]))
            except UserError as error:
                return _Failure(str(error))

        def arrived(batch: list[tuple[int, Future[T | _Failure]]]) -> tuple[list[int], list[T]]:
            indices, ready = [], []
            for index, future in batch:
                result = future.result()
                if isinstance(result, _Failure):
                    self.fail_image(index, result.reason)
                else:
                    indices.append(index)
                    ready.append(result)
            return indices, ready

        todo = list(range(len(self.images))) if wanted is None else list(wanted)
        waiting: deque[list[tuple[int, Future[T | _Failure]]]] = deque()
        pool = ThreadPoolExecutor(thread_name_prefix="decode")
        try:
            for start in range(0, len(todo), batch_size):
                waiting.append([(index, pool.submit(load, index)) for index in todo[start : start + batch_size]])
                if len(waiting) > _AHEAD:
                    yield arrived(waiting.popleft())
            while waiting:
                yield arrived(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Failure:
    reason: str


def gather(prompts: Sequence[str], images: Sequence[ImageLike]) -> Rows:
    """Return rows (prompts[i], images[i]) with equal prompts and equal images made one.

    Images are equal if their files (bytes, paths, Media) or their pixels (PIL, arrays, tensors) are. A missing or
    unreadable file, or a None, fails its row only; two lists that differ in length, or hold other types, are refused.
    """
    _listed(prompts, images)
    if len(prompts) != len(images):
        raise UserError(
            f"score() pairs prompts and images one to one; got {len(prompts)} prompts and {len(images)} images. "
            "score_images takes one prompt with many images, score_matrix every prompt with every image."
        )
    texts, prompt_of = _distinct_prompts(prompts)
    rows = _distinct_images(images)
    return Rows(texts, rows.images, rows.keys, prompt_of, rows.image_of, rows.failures)


def cross(prompts: Sequence[str], images: Sequence[ImageLike]) -> Rows:
    """Return the rows of every prompt with every image, prompt by prompt: row p * I + i. As `gather` otherwise."""
    _listed(prompts, images)
    texts, prompt_of = _distinct_prompts(prompts)
    once = _distinct_images(images)
    count = len(images)
    failures = {p * count + i: reason for i, reason in once.failures.items() for p in range(len(prompts))}
    return Rows(texts, once.images, once.keys, prompt_of.repeat(count), np.tile(once.image_of, len(prompts)), failures)


def _listed(prompts: object, images: object) -> None:
    if isinstance(prompts, str):
        raise UserError(
            "score() takes a list of prompts, one per image; got one string. Write [prompt] * len(images), or call "
            "score_images(prompt, images)."
        )
    if isinstance(images, np.ndarray) or is_tensor(images):
        if getattr(images, "ndim", 0) != 4:
            raise UserError(
                f"Images in one array must have four axes, (N, H, W, C) of an array, (N, C, H, W) of a tensor; got the "
                f"shape {tuple(getattr(images, 'shape', ()))}. Put a single image in a list."
            )
    elif isinstance(images, str | bytes | bytearray | Path | Media | Image.Image):
        raise UserError(f"score() takes a list of images; got one {type(images).__name__}. Write [image].")


def _distinct_prompts(prompts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the distinct prompts, and (N,) which one each row has; -1 where it is empty."""
    seen: dict[str, int] = {}
    prompt_of = np.full(len(prompts), -1)
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UserError(f"Prompt {row} must be a text, not {type(prompt).__name__}.")
        if prompt.strip():
            prompt_of[row] = seen.setdefault(prompt, len(seen))
    return list(seen), prompt_of


def _distinct_images(images: Sequence[ImageLike]) -> Rows:
    """Return rows without prompts: each image made ready to be kept, and told apart by its content, in threads."""
    # By object or path first: one image is often given for many prompts. Holding an object keeps its id() from reuse.
    given: dict[Hashable, tuple[int, ImageLike]] = {}
    name_of = []
    for row, image in enumerate(images):
        name: Hashable = str(image) if isinstance(image, str | Path) else id(image)
        given.setdefault(name, (row, image))
        name_of.append(name)
    kept = [held(image, f"Image {row}") for row, image in given.values()]
    first_rows = [row for row, _ in given.values()]
    with ThreadPoolExecutor(thread_name_prefix="identify") as pool:
        found = dict(zip(given, pool.map(_identified, kept, first_rows), strict=True))
    rows = Rows([], [], [], np.full(len(name_of), -1), np.full(len(name_of), -1))
    seen: dict[str, int] = {}
    for row, name in enumerate(name_of):
        result = found[name]
        if isinstance(result, _Failure):
            rows.failures[row] = result.reason
            continue
        image, key = result
        if key not in seen:
            seen[key] = len(rows.images)
            rows.images.append(image)
            rows.keys.append(key)
        rows.image_of[row] = seen[key]
    return rows


def _identified(image: Media | np.ndarray | Image.Image | None, row: int) -> tuple[Media | Image.Image, str] | _Failure:
    """Return an image as it is kept until it is decoded, with its content id."""
    if image is None:
        return _Failure("There is no image.")
    try:
        ready = image if isinstance(image, Media) else picture(image, f"Image {row}")
        return ready, content_id(ready)
    except UserError as error:
        return _Failure(str(error))
    except Exception as error:  # a PIL image is read from its file only now, and Pillow's decoders raise anything
        return _Failure(f"The image is broken or truncated ({type(error).__name__}: {error}).")

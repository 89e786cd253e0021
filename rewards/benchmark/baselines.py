"""What anyone could measure without a reward model. A scorer that does not beat these has learnt nothing worth having."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

import palate
from rewards.protocol import ImageLike, ScoreBatch
from rewards.rows import Rows
from rewards.stages import Scores, StagedScorer, Work

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def sharpness(picture: Image.Image) -> float:
    """Return the mean absolute Laplacian of the luma, for pixels in [0, 1]."""
    from scipy import ndimage

    return float(np.abs(ndimage.laplace(_pixels(picture) @ _LUMA)).mean())


def saturation(picture: Image.Image) -> float:
    """Return the mean of max - min over the channels, for pixels in [0, 1]."""
    pixels = _pixels(picture)
    return float((pixels.max(-1) - pixels.min(-1)).mean())


def jpeg_size(picture: Image.Image) -> float:
    """Return the kilobytes of the picture written as JPEG at quality 75."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=75)
    return buffer.tell() / 1000


class _Measured(Work):
    """A statistic of each distinct image; it is taken in the decoding threads."""

    batch_size = 64

    def __init__(self, name: str, measure: Callable[[Image.Image], float], rows: Rows) -> None:
        self.key, self.prepare, self.refused = ("statistic", name), measure, {}
        self.values = np.full(len(rows.images), np.nan)

    def start(self) -> Sequence[int]:
        return range(len(self.values))

    def take(self, indices: list[int], inputs: list[float]) -> None:
        self.values[indices] = inputs


class ImageStatistic(StagedScorer):
    """A statistic of the picture as a `Scorer` that ignores the prompt."""

    needs_prompt = False

    def __init__(self, name: str, unit: str, measure: Callable[[Image.Image], float]) -> None:
        self.name, self.unit, self._measure = name, unit, measure

    def begin(self, rows: Rows) -> Work:
        return _Measured(self.name, self._measure, rows)

    def finish(self, rows: Rows, work: Work) -> ScoreBatch:
        assert isinstance(work, _Measured)
        scores = Scores(rows, self.needs_prompt, work.refused)
        scores.values[scores.ok] = work.values[rows.image_of[scores.ok]]
        return scores.batch(
            scorer=self.name, unit=self.unit, weights=f"palate {palate.__version__}", preprocess="pixels as they are"
        )


class PromptLength:
    """The number of characters of the prompt as a `Scorer`. It cannot tell two images of one prompt apart."""

    name, unit = "prompt-length", "characters"

    def score(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> ScoreBatch:
        """Return the length of each row's prompt. Images are not opened."""
        values = np.array([len(prompt) for prompt in prompts], dtype=np.float64)
        return ScoreBatch(values, self.name, self.unit, f"palate {palate.__version__}", "images are not opened")


def baselines() -> list[ImageStatistic | PromptLength]:
    """Return the baselines of every table. More is taken to be better."""
    return [
        ImageStatistic("sharpness", "mean |Laplacian|", sharpness),
        ImageStatistic("jpeg-size", "kB", jpeg_size),
        ImageStatistic("saturation", "share", saturation),
        PromptLength(),
    ]


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255

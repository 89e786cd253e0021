"""Pairs of answers -> tokens and pixels, with every random choice a function of (seed, pair, visit)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from palate.conversations import AnswerPair
from vlm.batch import Batch, Encoded, padded
from vlm.corruption import Corruption, corrupt_pictures, corrupt_values
from vlm.encoding import Encoder


@dataclass(frozen=True)
class Known:
    """The reference's log-probabilities of a pair's answers, as the cache holds them, nats."""

    answers: tuple[Tensor, Tensor]
    """(T,) of the chosen and of the rejected answer."""
    corrupted: Tensor | None = None
    """(T,) of the chosen answer given the corrupted images."""


@dataclass(frozen=True)
class Example:
    """One pair on one visit, ready to be batched."""

    id: str
    chosen: Encoded
    """Both answers, chosen first; the chosen one alone where the rejected answer has images of its own."""
    rejected: Encoded | None
    """The rejected answer, where it has images of its own."""
    corrupted: Encoded | None
    """The chosen answer given the corrupted images."""
    p_chosen: float
    score_gap: float
    known: Known | None = None


@dataclass(frozen=True)
class PairBatch:
    """B pairs. `T` is the longest answer's length, that of the corrupted ones among them."""

    answers: Batch
    """B prompts with 2 answers each, or 2B prompts with 1, all chosen ones first, where `apart`."""
    apart: bool
    corrupted: Batch | None
    """B prompts with corrupted images and the chosen answer alone."""
    has_images: Tensor  # (B,) bool
    p_chosen: Tensor  # (B,)
    score_gap: Tensor  # (B,), NaN where unknown
    known: Tensor | None  # (B, 2, T) reference log-probabilities from the cache
    known_corrupted: Tensor | None  # (B, 1, T)

    def __len__(self) -> int:
        return len(self.p_chosen)

    def by_pair(self, values: Tensor) -> Tensor:
        """Return values of the answers, (B, 2, T) or (2B, 1, T), as (B, 2, T)."""
        return torch.cat(values.chunk(2), dim=1) if self.apart else values

    def to(self, device: torch.device | str, non_blocking: bool = True) -> PairBatch:
        """Return the batch on a device."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PairBatch:
        """Return the batch in pinned memory (called by the data loader)."""
        return self._each(lambda value: value.pin_memory())

    def _each(self, move: Callable[[Any], Any]) -> PairBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: move(v) for name, v in values.items() if isinstance(v, (Tensor, Batch))})


class Pairs(Protocol):
    """Pairs by number, with their pictures: the images, then the rejected answer's own."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[AnswerPair, list[Image.Image]]: ...


class PairList:
    """Pairs held in memory."""

    def __init__(self, pairs: Sequence[AnswerPair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[AnswerPair, list[Image.Image]]:
        pair = self.pairs[index]
        return pair, [image.decode() for image in (*pair.images, *(pair.rejected_images or ()))]


class PairExamples(Dataset[Example]):
    """`examples[(index, visit)]` of pairs, with all draws of that visit.

    corruption: what is done to the images of the slots that want it; None where no slot does. known: the reference's
    scores by `name_of`, where they are cached; then a random corruption has `draws` draws, which the visits take in turn.
    """

    def __init__(
        self,
        pairs: Pairs,
        encoder: Encoder,
        *,
        seed: int,
        corruption: Corruption | None = None,
        apart: bool = False,
        known: Mapping[str, Known] | None = None,
        draws: int = 0,
    ) -> None:
        self.pairs, self.encoder, self.seed = pairs, encoder, seed
        self.corruption, self.apart, self.known, self.draws = corruption, apart, known, draws
        self.frames = getattr(encoder.processor.image_processor, "temporal_patch_size", 1)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: tuple[int, int | str]) -> Example:
        index, visit = place
        return self.example(*self.pairs.read(index), visit)

    def example(self, pair: AnswerPair, pictures: Sequence[Image.Image], visit: int | str) -> Example:
        """Return a pair with the draws of its `visit` (a count, or a name for draws outside of training)."""
        visit = self.draw_of(visit)
        name = f"pair {pair.id}"
        own, others = pictures[: len(pair.images)], pictures[len(pair.images) :] or pictures
        if self.apart:
            chosen = self.encoder.encode(pair.prompt, own, [pair.chosen], name=name)
            rejected = self.encoder.encode(pair.prompt, others, [pair.rejected], name=name)
        else:
            chosen, rejected = self.encoder.encode(pair.prompt, own, [pair.chosen, pair.rejected], name=name), None
        return Example(
            id=pair.id,
            chosen=chosen,
            rejected=rejected,
            corrupted=self._corrupted(pair, own, chosen, visit),
            p_chosen=pair.p_chosen,
            score_gap=float("nan") if pair.score_gap is None else pair.score_gap,
            known=None if self.known is None else self.known[name_of(pair.id, visit, self.corruption)],
        )

    def draw_of(self, visit: int | str) -> int | str:
        """Return the draw that a visit uses."""
        return visit % self.draws if self.draws and isinstance(visit, int) else visit

    def _corrupted(
        self, pair: AnswerPair, pictures: Sequence[Image.Image], clean: Encoded, visit: int | str
    ) -> Encoded | None:
        if self.corruption is None:
            return None
        draw: dict[str, Any] = {"seed": self.seed, "content": pair.id, "visit": visit}
        if pictures and self.corruption.of_pictures:
            worse = corrupt_pictures(pictures, self.corruption, **draw)
            return self.encoder.encode(pair.prompt, worse, [pair.chosen], name=f"pair {pair.id}")
        alone = replace(clean, answers=clean.answers[:1], complete=clean.complete[:1])
        return corrupt_values(alone, self.corruption, frames=self.frames, **draw)


def name_of(pair: str, visit: int | str, corruption: Corruption | None) -> str:
    """Return the name of a pair's scores in the reference cache: its id, and the draw of its corrupted images."""
    if corruption is None:
        return pair
    return f"{pair}.{visit if corruption.is_random else 'fixed'}"


def collate(examples: Sequence[Example], encoder: Encoder) -> PairBatch:
    """Return a batch of B pairs."""
    chosen = [example.chosen for example in examples]
    rejected = [example.rejected for example in examples if example.rejected is not None]
    corrupted = [example.corrupted for example in examples if example.corrupted is not None]
    known = [example.known for example in examples if example.known is not None]
    changed = [scores.corrupted for scores in known if scores.corrupted is not None]
    return PairBatch(
        answers=encoder.collate([*chosen, *rejected]),
        apart=bool(rejected),
        # Without keys, so that a feature store leaves out images that no other visit shows.
        corrupted=replace(encoder.collate(corrupted), keys=()) if corrupted else None,
        has_images=torch.tensor([bool(item.images) for item in chosen]),
        p_chosen=torch.tensor([example.p_chosen for example in examples]),
        score_gap=torch.tensor([example.score_gap for example in examples]),
        known=_both(known) if known else None,
        known_corrupted=padded(changed)[:, None] if changed else None,
    )


def _both(known: Sequence[Known]) -> Tensor:
    rows = padded([scores for one in known for scores in one.answers])
    return rows.view(len(known), 2, -1)

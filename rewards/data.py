"""Judged images -> tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from palate.errors import UserError
from palate.readers import BadRow
from rewards.judgements import Judgements, Labels


@dataclass(frozen=True)
class Example:
    """One ranking, ready to be batched."""

    pixels: Tensor  # (K, 3, H, W), as the preprocessing's geometry makes them
    prompt: str
    labels: Labels
    weight: float


@dataclass(frozen=True)
class Batch:
    """B rankings of up to K images; the M images of all lie one after the other."""

    pixels: Tensor  # (M, 3, H, W)
    ids: Tensor  # (B, T)
    attention: Tensor  # (B, T)
    ranking_of: Tensor  # (M,), which ranking an image is of
    place: Tensor  # (B, K), which image stands there; 0 where none does
    mask: Tensor  # (B, K) bool
    preference: Tensor  # (B, K, K)
    gains: Tensor  # (B, K)
    best: Tensor  # (B, K)
    weight: Tensor  # (B,)

    def to(self, device: torch.device, non_blocking: bool = True) -> Batch:
        """Return the batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory (called by the data loader)."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(**{field.name: move(getattr(self, field.name)) for field in fields(self)})


class Examples(Dataset[Example]):
    """`examples[(index, visit)]` of some judgements. Where bad rows are skipped, the next good one stands in for one."""

    def __init__(
        self,
        judgements: Judgements,
        indices: Sequence[int],
        prepare: Callable[[Image.Image], Tensor],
        weight: Sequence[float] | np.ndarray | None = None,
        *,
        skip: bool = False,
    ) -> None:
        self.judgements, self.indices, self.prepare, self.skip = judgements, indices, prepare, skip
        self.weight = np.ones(len(indices)) if weight is None else np.asarray(weight)
        self.skipped = torch.zeros(1, dtype=torch.long).share_memory_()  # counts in the data workers too

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: tuple[int, int | str]) -> Example:
        for shift in range(len(self)):
            index = (place[0] + shift) % len(self)
            try:
                prompt, pictures, labels = self.judgements.read(self.indices[index])
            except BadRow as error:
                if not self.skip:
                    raise UserError(f"{error} Or leave such rows out with --data.on_bad_row skip.") from None
                self.skipped += 1
                continue
            pixels = torch.stack([self.prepare(picture) for picture in pictures])
            return Example(pixels, prompt, labels, float(self.weight[index]))
        raise UserError("No row of the data can be read.")


def collate(examples: Sequence[Example], tokenize: Callable[[list[str]], tuple[Tensor, Tensor]]) -> Batch:
    """Return a batch. `tokenize` makes (ids, attention mask) of prompts, (B, T) each."""
    sizes = [len(example.pixels) for example in examples]
    count, most = len(examples), max(sizes)
    ids, attention = tokenize([example.prompt for example in examples])
    mask = torch.arange(most) < torch.tensor(sizes)[:, None]
    place = torch.zeros(count, most, dtype=torch.long).masked_scatter(mask, torch.arange(sum(sizes)))
    preference = torch.full((count, most, most), torch.nan)
    gains, best = torch.zeros(count, most), torch.zeros(count, most)
    for b, example in enumerate(examples):
        size, labels = sizes[b], example.labels
        preference[b, :size, :size] = torch.from_numpy(labels.preference)
        gains[b, :size], best[b, :size] = torch.from_numpy(labels.gains), torch.from_numpy(labels.best)
    return Batch(
        pixels=torch.cat([example.pixels for example in examples]),
        ids=ids,
        attention=attention,
        ranking_of=torch.repeat_interleave(torch.tensor(sizes)),
        place=place,
        mask=mask,
        preference=preference,
        gains=gains,
        best=best,
        weight=torch.tensor([example.weight for example in examples]),
    )

"""Aspect-ratio buckets: training images keep their shape, and no batch holds two.

The way of SDXL (Podell et al., 2307.01952, section 2.3 and appendix I) and of NovelAI before it: sizes are multiples of a
step, of about one area; a picture goes into the bucket whose shape is nearest.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from palate.errors import UserError
from palate.kept import KeptRows
from t2i.batches import Example
from t2i.wholes import ADVICE, Whole

if TYPE_CHECKING:
    from t2i.data import Examples
    from t2i.kinds import Record

Size = tuple[int, int]
"""(height, width) in pixels."""


class Buckets:
    """The sizes that training images may have."""

    def __init__(self, resolution: int, step: int, max_aspect: float, longest_edge: int = 0) -> None:
        """resolution: its square is the largest area. step: of heights and widths. max_aspect: longer to shorter edge.

        longest_edge: most pixels of a height or width; 0 sets no bound.

        For each multiple of the step as one edge, the other is the largest that keeps the area.
        """
        if not 1 <= max_aspect <= 4:
            raise UserError(f"--data.image.max_aspect {max_aspect:g}: expected a ratio from 1 to 4.")
        side = resolution // step * step
        if not side:
            raise UserError(f"Buckets of {resolution} pixels with a step of {step} hold nothing: take a smaller step.")
        found = {(side, side)}
        for one in range(step, 2 * side + 1, step):
            other = resolution * resolution // one // step * step
            seen = not longest_edge or max(one, other) <= longest_edge
            if seen and max(one, other) <= max_aspect * min(one, other):
                found |= {(one, other), (other, one)}
        self.sizes: list[Size] = sorted(found)

    def nearest(self, pictures: Sequence[Size]) -> Size:
        """Return the size for all pictures of a record, which share their noise: nearest to their mean log aspect."""
        wanted = sum(math.log(width / height) for height, width in pictures) / len(pictures)
        return min(self.sizes, key=lambda size: (abs(math.log(size[1] / size[0]) - wanted), size))


class BucketedExamples(Dataset[Example]):
    """The examples of several buckets as one dataset: one bucket after the other."""

    def __init__(self, parts: Sequence[Examples]) -> None:
        self.parts = list(parts)
        self.kind, self.references, self.side = parts[0].kind, parts[0].references, parts[0].side
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, place: tuple[int, int | str]) -> Example:
        number = self.bucket(place[0])
        return self.parts[number][place[0] - self._begin(number), place[1]]

    def record(self, index: int) -> Record:
        """Return the record that is trained on at an index."""
        number = self.bucket(index)
        return self.parts[number].record(index - self._begin(number))

    def bucket(self, index: int) -> int:
        """Return in which of the buckets an index lies."""
        return bisect_right(self._ends, index)

    @property
    def groups(self) -> list[range]:
        """The indices of each bucket."""
        return [range(self._begin(number), end) for number, end in enumerate(self._ends)]

    def _begin(self, number: int) -> int:
        return self._ends[number - 1] if number else 0


def by_bucket(buckets: Buckets, sizes: Sequence[Sequence[Size] | None]) -> dict[Size, list[int]]:
    """Return the places in `sizes` that each bucket takes; None is a record that is left out. UserError if all are."""
    found: dict[Size, list[int]] = {}
    for place, pictures in enumerate(sizes):
        if pictures is not None:
            found.setdefault(buckets.nearest(pictures), []).append(place)
    if not found:
        raise UserError("No row of the data can be read.")
    return dict(sorted(found.items()))


def read_sizes(whole: Whole, folder: Path) -> dict[int, list[Size]]:
    """Return (height, width) of the pictures of each record by its number, by the files' headers; bad ones are left out.

    They are kept in `folder`, where a killed look goes on. The main process looks.
    """
    found: list[Any] = [None]
    if PartialState().is_main_process:
        name = blake2b(json.dumps(dict(whole.key), sort_keys=True).encode(), digest_size=8).hexdigest()
        with KeptRows(folder / f"sizes-{name}.jsonl").open() as kept:
            if len(kept.rows) < (whole.size or 0):
                for _, index, record in tqdm(whole.after({}), desc="sizes of images", total=whole.size, unit="record"):
                    if str(index) not in kept.rows:
                        kept.add({"key": str(index), "sizes": _sizes(record, whole)})
            found = [{int(key): row["sizes"] for key, row in kept.rows.items()}]
    broadcast_object_list(found)
    return {index: [(h, w) for h, w in sizes] for index, sizes in found[0].items() if sizes is not None}


def _sizes(record: Record | None, whole: Whole) -> list[Size] | None:
    if record is None:
        return None
    try:
        return [output.size() for output in record.outputs]
    except UserError as error:
        if whole.skips:
            return None
        raise UserError(f"{error} {ADVICE}") from None

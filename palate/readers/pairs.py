"""Rows -> pairs of images, by number (PairDataset) or in order (PairStream)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from palate.readers.reading import Position, RecordDataset, RecordStream
from palate.records import Pair

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PairDataset", "PairStream", "Position"]


class PairDataset(RecordDataset[Pair]):
    """The usable pairs of a table, by number. Made by `open_pairs`."""

    def decoded(self, index: int) -> tuple[Pair, Image.Image, Image.Image]:
        """Return pair `index` with its pictures, chosen and rejected, as RGB. Raises as `self[index]` does."""
        pair, (chosen, rejected) = self.read(index)
        return pair, chosen, rejected

    def prompts(self) -> list[str]:
        """Return the prompt of every pair, without reading images."""
        column = self._source.table([self._reader.prompt])[self._reader.prompt]
        if isinstance(column, list):
            return [column[row] for row in self._rows]
        return column.take(self._rows).to_pylist()


class PairStream(RecordStream[Pair]):
    """The usable pairs of a table in their order. Made by `open_pairs(..., streaming=True)`."""

    def decoded(self) -> Iterator[tuple[int, Pair, Image.Image, Image.Image]]:
        """Yield (row, pair, chosen picture, rejected picture). To resume after a pair, start at its row + 1."""
        for row, pair, (chosen, rejected) in self.read():
            yield row, pair, chosen, rejected

"""Where rows come from, whatever they mean: an arrow table, a stream (and see `json_rows`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from palate.errors import UserError
from palate.readers.reader import Rows, Unreadable

if TYPE_CHECKING:
    import datasets

    from palate.readers.columns import Column


class Source(Protocol):
    """Rows by number."""

    name: str
    """What the user gave, for messages."""
    columns: tuple[str, ...]
    rows: Rows
    broken: Mapping[int, tuple[str, str]]
    """Row -> (reason, advice) where there is no row to speak of."""

    def __len__(self) -> int: ...

    def row(self, index: int, columns: list[str]) -> Mapping[str, Any]: ...

    def table(self, columns: list[str]) -> Mapping[str, Column]:
        """Return whole columns; only ever asked for cheap ones."""
        ...


class StreamSource(Protocol):
    """Rows in order."""

    name: str
    columns: tuple[str, ...]
    rows: Rows

    def no_rows(self, columns: list[str]) -> Mapping[str, Column]:
        """Return the columns with their types, where they have one, and no rows."""
        ...

    def iterate(self, start: int, columns: list[str]) -> Iterator[Mapping[str, Any] | Unreadable]:
        """Yield the rows from number `start` on; in place of one that cannot be had, why."""
        ...


class TableSource:
    """A memory-mapped `datasets.Dataset`. Images stay encoded."""

    def __init__(self, name: str, dataset: datasets.Dataset, rows: Rows) -> None:
        self.name = name
        self.columns = tuple(dataset.column_names)
        self.rows = rows
        self.broken: Mapping[int, tuple[str, str]] = {}
        self._dataset = dataset.with_format("arrow")  # as stored: decodes no image
        self._narrow = (list(self.columns), self._dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int, columns: list[str]) -> Mapping[str, Any]:
        if self._narrow[0] != columns:
            self._narrow = (columns, self._dataset.select_columns(columns))
        return self._narrow[1][index].to_pylist()[0]

    def table(self, columns: list[str]) -> Mapping[str, Column]:
        table = self._dataset.select_columns(columns)[:]
        return {name: table.column(name) for name in columns}


class InOrder:
    """The rows of a `Source`, one after the other; any start costs nothing."""

    def __init__(self, source: Source) -> None:
        self.name, self.columns, self.rows = source.name, source.columns, source.rows
        self._source = source

    def no_rows(self, columns: list[str]) -> Mapping[str, Column]:
        return {name: column[:0] for name, column in self._source.table(columns).items()}

    def iterate(self, start: int, columns: list[str]) -> Iterator[Mapping[str, Any] | Unreadable]:
        broken = self._source.broken
        for index in range(start, len(self._source)):
            yield Unreadable(*broken[index]) if index in broken else self._source.row(index, columns)


class LazyStream:
    """A `datasets` stream of local files or of the hub, read piece by piece; nothing is stored on disk.

    `files` names the parquet files behind it (paths or hf:// addresses; none if they are of another kind): those
    wholly before the start are passed over by their footers. `explain(error, row)` raises the UserError that an error
    on the way deserves.
    """

    def __init__(
        self,
        name: str,
        stream: datasets.IterableDataset,
        rows: Rows,
        files: Callable[[], list[str]],
        explain: Callable[[Exception, int], NoReturn],
    ) -> None:
        self.name = name
        self.rows = rows
        self._files = files
        self._explain = explain
        try:
            self._stream = _undecoded(stream)
            self.columns = tuple(_column_names(self._stream))
        except Exception as error:
            explain(error, 0)

    def no_rows(self, columns: list[str]) -> Mapping[str, Column]:
        if self._stream.features is None:
            return {name: [] for name in columns}
        import pyarrow as pa

        schema = self._stream.features.arrow_schema
        return {name: pa.chunked_array([], schema.field(name).type) for name in columns}

    def iterate(self, start: int, columns: list[str]) -> Iterator[Mapping[str, Any]]:
        row = start
        try:
            for values in self._from(start).select_columns(columns):
                yield values
                row += 1
        except UserError:
            raise
        except Exception as error:
            self._explain(error, row)

    def _from(self, start: int) -> datasets.IterableDataset:
        files = self._files() if start else []
        if not files:
            return self._stream.skip(start)
        import datasets as hf

        passed = 0
        while passed < len(files) - 1 and start >= (held := _rows_in(files[passed])):
            start -= held
            passed += 1
        rest = hf.load_dataset("parquet", data_files={"rest": files[passed:]}, split="rest", streaming=True)
        return _undecoded(rest).skip(start)


def _undecoded(stream: datasets.IterableDataset) -> datasets.IterableDataset:
    return stream if stream.features is None else stream.decode(False)


def _column_names(stream: datasets.IterableDataset) -> list[str]:
    if stream.features is not None:
        return list(stream.features)
    return list(next(iter(itertools.islice(stream, 1)), {}))


def _rows_in(file: str) -> int:
    import fsspec
    import pyarrow.parquet as pq

    with fsspec.open(file, "rb") as opened:
        return pq.ParquetFile(opened).metadata.num_rows

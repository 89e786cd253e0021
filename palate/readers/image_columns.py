"""Columns of images, looked at without reading the images: which files they name, which rows share one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from palate.readers.reader import Rows, Unreadable, locate

if TYPE_CHECKING:
    from palate.readers.columns import Column

EDGE = 4096
"""Bytes at either end of an embedded image that tell it from others."""


def missing_files(columns: Mapping[str, Column], rows: Rows) -> dict[int, tuple[str, str]]:
    """Return row -> (reason, advice) of the rows that name a file which is not there. Embedded images are no names."""
    missing: dict[int, tuple[str, str]] = {}
    known: dict[str, tuple[str, str] | None] = {}
    for name, column in columns.items():
        for row, values in enumerate(_cells(column)):
            for value in values:
                if isinstance(value, str) and value:
                    if value not in known:
                        known[value] = _fault(name, value, rows)
                    fault = known[value]
                    if fault is not None:
                        missing.setdefault(row, fault)
    return missing


def image_keys(columns: Mapping[str, Column]) -> list[str]:
    """Return a key of the images of each row, equal where the images are: "" where there are none.

    A named file is known by its name, an embedded image by its length and its first and last bytes.
    """
    keys: list[list[str]] = []
    for column in columns.values():
        for row, values in enumerate(_cells(column)):
            if row == len(keys):
                keys.append([])
            keys[row] += [_key(value) for value in values]
    return ["\x1f".join(key) for key in keys]


def _fault(name: str, value: str, rows: Rows) -> tuple[str, str] | None:
    try:
        locate(name, value, rows)
    except Unreadable as error:
        return error.reason, error.advice
    return None


def _key(value: Any) -> str:
    if isinstance(value, str):
        return f"file {value}"
    data = memoryview(value)
    return f"{len(data)} {blake2b(bytes(data[:EDGE]) + bytes(data[-EDGE:]), digest_size=16).hexdigest()}"


def _cells(column: Column) -> Iterable[list[Any]]:
    """Yield each row's images, as names (str) or as what holds the encoded bytes; what is neither is left out."""
    if isinstance(column, list):
        for cell in column:
            yield [v for v in map(_named_or_held, cell if isinstance(cell, list) else [cell]) if v is not None]
        return
    for chunk in column.chunks:
        for cell in chunk:
            yield list(_scalars(cell))


def _named_or_held(value: Any) -> Any:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    return value if isinstance(value, (str, bytes)) and value else None


def _scalars(cell: Any) -> Iterable[Any]:
    """Yield the names and buffers in an arrow scalar, without copying the buffers."""
    import pyarrow as pa

    if not cell.is_valid:
        return
    if isinstance(cell, (pa.ListScalar, pa.LargeListScalar)):
        for item in cell.values:
            yield from _scalars(item)
    elif isinstance(cell, pa.StructScalar):
        for field in ("bytes", "path"):
            found = list(_scalars(cell[field])) if field in cell else []
            if found:
                yield found[0]
                return
    elif isinstance(cell, (pa.BinaryScalar, pa.LargeBinaryScalar)) and not isinstance(cell, pa.StringScalar):
        if cell.as_buffer().size:
            yield cell.as_buffer()
    elif isinstance(cell, (pa.StringScalar, pa.LargeStringScalar)) and cell.as_py():
        yield cell.as_py()

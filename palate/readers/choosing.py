"""Which reader reads a table: named by the user, or told by the columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from palate.errors import UserError, unknown
from palate.readers.reader import ON_BAD_ROW, TIES, Reader

Some = TypeVar("Some", bound=Reader)


def sniffed(columns: Iterable[str], readers: Mapping[str, Some], name: str = "The data") -> Some:
    """Return the reader whose columns are all there; of two, one of which needs all that the other does, the former.

    UserError lists what was found and needed.
    """
    present = set(columns)
    fitting = [reader for reader in readers.values() if set(reader.needs) <= present]
    best = [one for one in fitting if not any(set(one.needs) < set(other.needs) for other in fitting)]
    if len(best) == 1:
        return best[0]
    if best:
        names = " and ".join(reader.name for reader in best)
        raise UserError(f"{name} fits the formats {names}. Say which with format=.")
    needs = "; ".join(f"{reader.name} needs {', '.join(reader.needs)}" for reader in readers.values())
    found = ", ".join(sorted(present)[:30]) or "none"
    raise UserError(f"{name} has columns of no known format. Found: {found}. Known: {needs}. Rename the columns.")


def choose(format: str, columns: tuple[str, ...], readers: Mapping[str, Some], path: str) -> Some:
    """Return the reader of that name, or by "auto" the one that fits; UserError if it lacks columns."""
    if format == "auto":
        return sniffed(columns, readers, repr(path))
    reader = readers[format]
    absent = [name for name in reader.needs if name not in columns]
    if absent:
        raise UserError(
            f"{path!r} lacks the columns {', '.join(absent)} that the format {format!r} needs. "
            f"Found: {', '.join(columns) or 'none'}. Rename the columns, or name another format."
        )
    return reader


def check_options(format: str, readers: Iterable[str], ties: str, on_bad_row: str, limit: int | None) -> None:
    """Raise UserError for an option that cannot be."""
    for option, given, known in (("ties", ties, TIES), ("on_bad_row", on_bad_row, ON_BAD_ROW)):
        if given not in known:
            raise UserError(unknown(f"value of {option}:", str(given), known))
    if format != "auto" and format not in readers:
        raise UserError(unknown("data format", format, (*readers, "auto")))
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}. Leave it out to read all.")

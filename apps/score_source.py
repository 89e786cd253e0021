"""What `palate score` reads: a folder of images, a table of prompts and images, or pairs; row by row, in any order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from palate.errors import UserError

if TYPE_CHECKING:
    from palate.readers import PairDataset
    from palate.readers.sources import Source as Table
    from rewards import ImageLike

METADATA = "metadata.jsonl"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
_PROMPT_COLUMNS = ("prompt", "caption", "text")


@dataclass(frozen=True)
class Item:
    """One row of the input: what identifies it, and one image, or two (chosen, rejected)."""

    row: int
    columns: Mapping[str, Any]
    prompt: str
    images: tuple[ImageLike, ...]


@dataclass(frozen=True)
class Failure:
    """Why a row, or one scorer's score of it, is not there. scorer is "" where the row could not be read."""

    row: int
    scorer: str
    reason: str


class Source(Protocol):
    """Rows by number.

    sides: what the images of a row are called: one without a name, or chosen and rejected.
    columns: identifying column -> its arrow type. identity: a hash that is equal for equal rows.
    failures: of rows that opening has left out already.
    """

    @property
    def count(self) -> int: ...
    @property
    def sides(self) -> tuple[str, ...]: ...
    @property
    def columns(self) -> Mapping[str, str]: ...
    @property
    def identity(self) -> str: ...
    @property
    def failures(self) -> Sequence[Failure]: ...
    def read(self, index: int) -> Item | Failure: ...


def open_source(data: str, limit: int | None) -> Source:
    """Return the rows at a path: a folder with metadata.jsonl, a folder of images, a table with a prompt and an image
    column (parquet, saved dataset, hub), or pairs in any format that palate reads. UserError where there is none.
    """
    folder = Path(data)
    if (folder / METADATA).is_file():
        lines = [line for line in (folder / METADATA).read_text(encoding="utf-8").splitlines() if line.strip()]
        if lines and '"file_name"' in lines[0]:
            return Described(folder, lines[:limit])
    elif folder.is_dir() and (files := _images_in(folder)):
        return Bare(folder, files[:limit])
    from palate.readers.opening import open_table

    table = open_table(data, "train", None)
    image, prompt = (_column(table.columns, names) for names in (_IMAGE_COLUMNS, _PROMPT_COLUMNS))
    if image and prompt:
        return Rows(table, image, prompt, limit)
    from palate.readers import open_pairs

    return Pairs(open_pairs(data, on_bad_row="skip", limit=limit))


class Described:
    """A folder whose metadata.jsonl names each file and its prompt."""

    sides, columns = ("",), {"file_name": "string"}
    failures: Sequence[Failure] = ()

    def __init__(self, folder: Path, lines: Sequence[str]) -> None:
        self.count, self.identity = len(lines), _hash(lines)
        self._folder, self._lines = folder, lines

    def read(self, index: int) -> Item | Failure:
        try:
            said = json.loads(self._lines[index])
            name, prompt = said["file_name"], said.get("prompt", said.get("text"))
            if not isinstance(name, str) or not isinstance(prompt, str):
                raise KeyError("prompt")
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            return Failure(index, "", f"metadata.jsonl: not an object with file_name and prompt ({error})")
        if said.get("flagged"):
            return Failure(index, "", f"{name} was blacked out by the safety checker")
        return Item(index, {"file_name": name}, prompt, (self._folder / name,))


class Bare:
    """A folder of images. The prompt of image.png is what image.txt says, and empty without it."""

    sides, columns = ("",), {"file_name": "string"}
    failures: Sequence[Failure] = ()

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.count = len(files)
        self.identity = _hash([str(file.relative_to(folder)) for file in files])
        self._folder, self._files = folder, files

    def read(self, index: int) -> Item | Failure:
        file = self._files[index]
        name = str(file.relative_to(self._folder))
        beside = file.with_suffix(".txt")
        try:
            prompt = beside.read_text(encoding="utf-8").strip() if beside.is_file() else ""
        except (OSError, ValueError) as error:
            return Failure(index, "", f"{beside.name} cannot be read: {error}")
        return Item(index, {"file_name": name}, prompt, (file,))


class Rows:
    """A table with a column of prompts and one of images."""

    sides = ("",)
    columns: Mapping[str, str] = {}
    failures: Sequence[Failure] = ()

    def __init__(self, table: Table, image: str, prompt: str, limit: int | None) -> None:
        self.count = min(len(table), limit or len(table))
        prompts = table.table([prompt])[prompt]
        self.identity = _hash([str(value) for value in list(prompts)[: self.count]])
        self._table, self._image, self._prompt = table, image, prompt

    def read(self, index: int) -> Item | Failure:
        from palate.readers.reader import image

        try:
            if index in self._table.broken:
                return Failure(index, "", ". ".join(self._table.broken[index]))
            row = self._table.row(index, [self._prompt, self._image])
            media = image(self._image, row[self._image], self._table.rows)
        except UserError as error:
            return Failure(index, "", str(error))
        return Item(index, {}, row[self._prompt] or "", (media,))


class Pairs:
    """Pairs of images, in any format that palate reads."""

    sides = ("chosen", "rejected")
    columns: Mapping[str, str] = {"pair": "string", "p_chosen": "double", "source": "string"}

    def __init__(self, pairs: PairDataset) -> None:
        self.count, self.identity = len(pairs), _hash(pairs.prompts())
        self.failures = [Failure(bad.row, "", f"{bad.reason}. {bad.advice}") for bad in pairs.bad]
        self._pairs = pairs

    def read(self, index: int) -> Item | Failure:
        from palate.readers import BadRow

        try:
            pair = self._pairs.record(index)  # decoded where it is scored, once
        except BadRow as bad:
            return Failure(bad.row, "", f"{bad.reason}. {bad.advice}")
        columns = {"pair": pair.id, "p_chosen": pair.p_chosen, "source": pair.source}
        return Item(self._pairs.row(index), columns, pair.prompt, (pair.chosen, pair.rejected))


def whereabouts(data: str) -> str:
    """Return what tells apart data that have equal prompts: where they are, and of a file also its size and its age."""
    path = Path(data).expanduser()
    if not path.exists():  # on the hub
        return data
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}" if path.is_file() else str(path.resolve())


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _hash(lines: Sequence[str]) -> str:
    total = blake2b(digest_size=16)
    for line in lines:
        total.update(line.encode("utf-8", "surrogatepass") + b"\x00")
    return total.hexdigest()

"""Battle packs: a folder or zip with `pack.json` and pictures, from which an arena can be opened without a GPU.

`pack.json` holds {"format": "palate pack 1", "title", "items": [{"prompt", "category", "question", "outputs": [{"model",
"seed", "file" | "text"}]}]}. `file` and `question` are names within the pack. All outputs of an item are images, or all
are texts.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from palate.errors import UserError

FILE = "pack.json"
FORMAT = "palate pack 1"
MOST_BYTES = 200_000_000
"""Size of one file of a zip, unpacked."""


@dataclass(frozen=True)
class PackOutput:
    """What one model made for an item: a picture's name within the pack, or a text."""

    model: str
    file: str | None = None
    text: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class PackItem:
    """A prompt, or a question about a picture, with the outputs of several models."""

    prompt: str
    outputs: tuple[PackOutput, ...]
    category: str = ""
    question: str | None = None
    """Name within the pack of the picture that a question is about."""

    @property
    def kind(self) -> str:
        """ "image" or "text"."""
        return "image" if self.outputs[0].file is not None else "text"


@dataclass(frozen=True)
class Pack:
    """A pack that was read: its items, and `read`, which returns the bytes of one of its files."""

    title: str
    items: tuple[PackItem, ...]
    digest: str = ""
    read: Callable[[str], bytes] = field(default=lambda name: b"", compare=False)

    @property
    def models(self) -> tuple[str, ...]:
        """The models' names, sorted."""
        return tuple(sorted({output.model for item in self.items for output in item.outputs}))


def read_pack(path: Path) -> Pack:
    """Return the pack in a folder or zip. Raises UserError for what is missing or wrong, naming the item."""
    if path.is_dir():
        root = path.resolve()

        def read(name: str) -> bytes:
            try:
                return (root / name).read_bytes()
            except OSError as error:
                raise UserError(f"The pack {path} has no readable file {name}: {error.strerror}.") from None
    elif zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)

        def read(name: str) -> bytes:
            try:
                size = archive.getinfo(name).file_size
                if size > MOST_BYTES:
                    raise UserError(f"{name} in {path} unpacks to {size:,} bytes; at most {MOST_BYTES:,}.")
                return archive.read(name)
            except (KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
                raise UserError(f"The pack {path} has no readable file {name}: {error}.") from None
    else:
        raise UserError(f"{path} is neither a folder nor a zip. A pack is made by `palate pack`.")
    content = read(FILE)
    try:
        head = json.loads(content)
    except ValueError as error:
        raise UserError(f"{FILE} of {path} is not JSON ({error}). Make the pack again.") from None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise UserError(f'{FILE} of {path} does not say "format": "{FORMAT}". Make the pack with `palate pack`.')
    items = head.get("items")
    if not isinstance(items, list) or not items:
        raise UserError(f"The pack {path} has no items.")
    return Pack(
        title=str(head.get("title") or path.stem),
        items=tuple(_item(f"{path}, item {number}", item) for number, item in enumerate(items)),
        digest=blake2b(content, digest_size=16).hexdigest(),
        read=read,
    )


def write_head(folder: Path, title: str, items: Iterable[PackItem]) -> None:
    """Write `pack.json`, whole or not at all."""
    rows = [
        {
            **{k: v for k, v in asdict(item).items() if k != "outputs" and v not in (None, "")},
            "outputs": [{k: v for k, v in asdict(output).items() if v is not None} for output in item.outputs],
        }
        for item in items
    ]
    draft = folder / f".{FILE}"
    text = json.dumps({"format": FORMAT, "title": title, "items": rows}, ensure_ascii=False, indent=1)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(folder / FILE)


def _item(where: str, given: Any) -> PackItem:
    row = _fields(where, given, {"prompt": str, "outputs": list}, {"category": str, "question": str})
    if not row["prompt"].strip():
        raise UserError(f"{where}: the prompt is empty.")
    outputs = tuple(_output(f"{where}, output {number}", output) for number, output in enumerate(row["outputs"]))
    if not outputs or len({output.file is None for output in outputs}) > 1:
        raise UserError(f"{where}: outputs are one or more, all of them images (file) or all texts (text).")
    question = row.get("question")
    return PackItem(row["prompt"], outputs, row.get("category", ""), question and _inside(where, question))


def _output(where: str, given: Any) -> PackOutput:
    row = _fields(where, given, {"model": str}, {"file": str, "text": str, "seed": int})
    if ("file" in row) == ("text" in row) or not row["model"].strip():
        raise UserError(f"{where}: an output has a model and either file or text.")
    return PackOutput(
        check_name(row["model"]),
        _inside(where, row["file"]) if "file" in row else None,
        row.get("text"),
        row.get("seed"),
    )


def check_name(model: str) -> str:
    """Return a model's name without space around it. Raises UserError for an empty or very long one."""
    name = model.strip()
    if not 0 < len(name) <= 200 or not name.isprintable():
        raise UserError(f"A model's name has 1 to 200 printable characters; got {model[:60]!r}.")
    return name


def _fields(where: str, given: Any, needs: Mapping[str, type], also: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise UserError(f"{where}: expected an object, got {type(given).__name__}.")
    row = {name: value for name, value in given.items() if value is not None}
    for name, kind in {**needs, **also}.items():
        if name in needs and name not in row:
            raise UserError(f"{where}: no '{name}'.")
        if name in row and (not isinstance(row[name], kind) or isinstance(row[name], bool)):
            raise UserError(f"{where}: '{name}' must be {kind.__name__}, not {type(row[name]).__name__}.")
    return row


def _inside(where: str, name: str) -> str:
    """Return a file's name that cannot lead out of the pack."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise UserError(f"{where}: {name!r} is not a name within the pack.")
    return str(path)

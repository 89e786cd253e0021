"""Outputs of several models -> a battle pack. Pictures are stripped of metadata and named by content; work resumes."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from tqdm.auto import tqdm

from apps.arena.packs.format import FILE, PackItem, PackOutput, check_name, read_pack, write_head
from apps.arena.packs.media import encode
from apps.arena.packs.sources import Made
from palate.decoding import decode
from palate.errors import UserError


@dataclass
class _Group:
    category: str = ""
    outputs: dict[tuple[str, str], PackOutput] = field(default_factory=dict)


@dataclass(frozen=True)
class Packed:
    """What a pack holds: prompts, those among them with outputs of two models or more, outputs, and new outputs."""

    prompts: int
    battles: int
    outputs: int
    new: int


def make_pack(folder: Path, sources: Mapping[str, Sequence[Made]], *, title: str = "", category: str = "") -> Packed:
    """Write the outputs of the models into the pack in `folder`, beside what it holds already.

    `pack.json` is replaced at the end. A picture whose file is in the pack is not read into pixels again, so that a pack
    that was interrupted, or gets one more model, goes on where it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, str, str], _Group] = {}
    known = 0
    if (folder / FILE).exists():
        old = read_pack(folder)
        title = title or old.title
        for item in old.items:
            group = groups.setdefault((item.kind, item.prompt, item.question or ""), _Group(item.category))
            for output in item.outputs:
                group.outputs[output.model, output.file or output.text or ""] = output
                known += 1
    elif any(folder.iterdir()) and not (folder / "media").is_dir():
        raise UserError(f"{folder} holds something that is not a pack. Give another --out.")
    todo = [(check_name(model), made) for model, rows in sources.items() for made in rows]
    for model, made in tqdm(todo, desc="pack", unit="output", disable=None):
        question = "" if made.question is None else _keep(folder, made.question)
        file = None if made.picture is None else _keep(folder, made.picture)
        kind = "text" if file is None else "image"
        group = groups.setdefault((kind, made.prompt, question), _Group(made.category or category))
        group.outputs.setdefault((model, file or made.text or ""), PackOutput(model, file, made.text, made.seed))
    items = [
        PackItem(prompt, tuple(group.outputs.values()), group.category, question or None)
        for (_, prompt, question), group in groups.items()
    ]
    if not items:
        raise UserError("There is nothing to pack. Name sources as NAME=FOLDER.")
    write_head(folder, title or folder.name, items)
    count = sum(len(item.outputs) for item in items)
    battles = sum(len({output.model for output in item.outputs}) > 1 for item in items)
    return Packed(len(items), battles, count, count - known)


def zip_pack(folder: Path) -> Path:
    """Write the pack as a zip beside its folder and return the file. What lies in the folder besides is left out."""
    pack, target = read_pack(folder), folder.with_name(f"{folder.name}.zip")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    names = {name for item in pack.items for name in (item.question, *(output.file for output in item.outputs)) if name}
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:  # PNGs do not get smaller
            for name in (FILE, *sorted(names)):
                archive.write(folder / name, name)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def _keep(folder: Path, source: Path) -> str:
    """Re-encode a picture into the pack, unless it is there, and return its name within the pack."""
    try:
        data = source.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {source}: {error.strerror}.") from None
    digest = blake2b(data, digest_size=16).hexdigest()
    name = f"media/{digest[:2]}/{digest}.png"
    if not (folder / name).exists():
        png = encode(decode(data, str(source)))
        draft = folder / f"media/{digest[:2]}/.{digest}.{os.getpid()}"
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(png)
        draft.replace(folder / name)
    return name

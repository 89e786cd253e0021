"""Pictures as voters get them: upright 8-bit RGB in a PNG with nothing but pixels, both sides alike in size and bytes.

Two pictures of equal size are served losslessly. Where the sizes differ, the smaller is enlarged (as the page would do
anyway) onto a canvas of the larger one's size, grey where the shapes differ, so that resolution tells nobody who made what.
"""

from __future__ import annotations

import io
import os
import secrets
import struct
import zlib
from hashlib import blake2b
from pathlib import Path

from PIL import Image

from apps.arena.errors import Refused
from palate.decoding import decode
from palate.errors import UserError

Size = tuple[int, int]
GREY = (128, 128, 128)
END = b"\0\0\0\0IEND\xaeB`\x82"
UPLOADS = ("PNG", "JPEG", "WEBP")


class MediaFolder:
    """PNG files by the hash of their pixels; written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, picture: Image.Image) -> tuple[str, Size]:
        """Store a picture in RGB and return its id and its size in pixels."""
        name = pixel_id(picture)
        path = self._path(name)
        if not path.exists():
            _write(path, encode(picture))
        return name, picture.size

    def read(self, name: str, size: Size) -> bytes:
        """Return the PNG of a stored picture on a canvas of `size`."""
        path = self.prepare(name, size)
        try:
            return path.read_bytes()
        except OSError as error:
            raise Refused("missing", f"The picture is not in the arena's folder ({error.strerror}).") from None

    def prepare(self, name: str, size: Size) -> Path:
        """Return the file of a stored picture on a canvas of `size`, making it where it is not there yet."""
        original, path = self._path(name), self._path(name, size)
        if path.exists():
            return path
        if not original.exists():
            raise Refused("missing", "The picture is not in the arena's folder.")
        picture = decode(original.read_bytes(), str(original))
        if picture.size == size:
            return original
        _write(path, encode(on_canvas(picture, size)))
        return path

    def open(self, name: str) -> Image.Image:
        """Return a stored picture."""
        return decode(self.path(name).read_bytes(), name)

    def path(self, name: str) -> Path:
        """Return the file of a stored picture as it was added."""
        return self._path(name)

    def remove(self, name: str) -> None:
        """Delete a picture and what was made of it."""
        for path in self._path(name).parent.glob(f"{name}*.png"):
            path.unlink(missing_ok=True)

    def _path(self, name: str, size: Size | None = None) -> Path:
        return self._folder / name[:2] / (f"{name}.png" if size is None else f"{name}-{size[0]}x{size[1]}.png")


def pixel_id(picture: Image.Image) -> str:
    """Return 32 hex characters that depend on size and pixels alone."""
    digest = blake2b(f"{picture.mode} {picture.size}\0".encode(), digest_size=16)
    digest.update(picture.tobytes())
    return digest.hexdigest()


def encode(picture: Image.Image) -> bytes:
    """Return a PNG of the pixels and of nothing else."""
    bare = Image.frombytes("RGB", picture.size, picture.convert("RGB").tobytes())
    buffer = io.BytesIO()
    bare.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def common_size(a: Size, b: Size) -> Size:
    """Return the size at which both sides of a battle are shown: that of the picture with more pixels."""
    return max(a, b, key=lambda size: (size[0] * size[1], size))


def on_canvas(picture: Image.Image, size: Size) -> Image.Image:
    """Return the picture as large as fits, centred on grey."""
    share = min(size[0] / picture.width, size[1] / picture.height)
    fitted = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
    scaled = picture if fitted == picture.size else picture.resize(fitted, Image.Resampling.LANCZOS)
    if fitted == size:
        return scaled
    canvas = Image.new("RGB", size, GREY)
    canvas.paste(scaled, ((size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2))
    return canvas


def pad(png: bytes, length: int) -> bytes:
    """Return the PNG made `length` bytes long by a chunk that viewers skip; `length` is its own, or 12 more at least."""
    more = length - len(png)
    if more == 0:
        return png
    if more < 12 or not png.endswith(END):
        raise ValueError(f"A PNG of {len(png)} bytes cannot be padded to {length}.")
    kind, filling = (
        b"paDd",
        bytes(more - 12),
    )  # lower case, lower case, upper case, lower case: ancillary, private, copyable
    chunk = struct.pack(">I", len(filling)) + kind + filling + struct.pack(">I", zlib.crc32(kind + filling))
    return png[: -len(END)] + chunk + END


def equal_length(length: int, other: int) -> int:
    """Return how long both PNGs of a battle become: the longer one, rounded up to KiB with room for the chunk."""
    return -(-(max(length, other) + 12) // 1024) * 1024


def read_upload(data: bytes, most_pixels: int) -> Image.Image:
    """Return an uploaded picture. Refused for other formats than PNG, JPEG and WebP, broken files and bombs.

    The size is read from the header, before anything is decompressed.
    """
    try:
        with Image.open(io.BytesIO(data), formats=UPLOADS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise Refused("large", f"The picture has far more than {most_pixels:,} pixels.") from None
    except Exception:  # Pillow's parsers raise anything
        raise Refused("invalid", "This is no picture that can be read. Give a PNG, JPEG or WebP file.") from None
    if width * height > most_pixels:
        raise Refused("large", f"The picture has {width} x {height} pixels; at most {most_pixels:,} in all.")
    try:
        return decode(data, "The picture")
    except UserError as error:
        raise Refused("invalid", str(error)) from None


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        draft.write_bytes(data)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)

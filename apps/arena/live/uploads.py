"""Pictures that voters ask about: read once, re-encoded, and gone after a day unless a question was asked."""

from __future__ import annotations

import time
from pathlib import Path

from apps.arena.errors import Refused
from apps.arena.packs.media import MediaFolder, Size, read_upload
from apps.arena.voting.tokens import Tokens
from apps.arena.voting.visitors import Visitor

KEPT_SECONDS = 24 * 3600


class Uploads:
    """A folder of its own, from which a picture moves to the arena's when it is used."""

    def __init__(self, folder: Path, media: MediaFolder, tokens: Tokens, most_pixels: int) -> None:
        self._folder, self._kept = folder, MediaFolder(folder)
        self._media, self._tokens, self._most_pixels = media, tokens, most_pixels

    def add(self, data: bytes, visitor: Visitor) -> str:
        """Store a picture and return a token for it that only this voter can use."""
        name, (width, height) = self._kept.add(read_upload(data, self._most_pixels))
        return self._tokens.sign("upload", name, width, height, visitor.voter)

    def take(self, token: str, visitor: Visitor) -> tuple[str, Size]:
        """Move an uploaded picture into the arena's folder and return its id and size."""
        name, width, height, voter = self._tokens.read("upload", token, 4)
        if voter != visitor.voter:
            raise Refused("forged", "This picture was uploaded by somebody else.")
        if not self._media.path(name).exists():
            if not self._kept.path(name).exists():
                raise Refused("expired", "This picture is no longer here. Upload it again.")
            self._media.add(self._kept.open(name))
        return name, (int(width), int(height))

    def clean(self) -> None:
        """Delete what is older than a day."""
        for path in self._folder.glob("*/*.png"):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink(missing_ok=True)

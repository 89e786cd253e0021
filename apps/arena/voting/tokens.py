"""What the arena signs: battle tokens, media names, voters' cookies, tickets of the queue, the owner's session."""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from itsdangerous import BadData, Signer

from apps.arena.errors import Refused

SECRET = "secret"
SIDES = ("a", "b", "q")
"""Which picture of a battle: of either side, or the one that the question is about."""


def load_secret(folder: Path) -> str:
    """Return the arena's signing key, made at the first start and readable by its owner only."""
    path = folder / SECRET
    if not path.exists():
        draft = folder / f".{SECRET}.{os.getpid()}.{secrets.token_hex(4)}"
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(32), encoding="ascii")
        with suppress(FileExistsError):
            os.link(draft, path)  # of several workers that start at once, one wins
        draft.unlink()
    return path.read_text(encoding="ascii").strip()


class Tokens:
    """Signs and reads. Each purpose has a salt of its own, so that no token passes for another.

    A token is its parts in plain sight, joined by "~", and a signature (HMAC-SHA256). Parts are of letters, digits and "-".
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._signers: dict[str, Signer] = {}

    def sign(self, purpose: str, *parts: str | int) -> str:
        """Return a token."""
        return self._signer(purpose).sign("~".join(map(str, parts))).decode()

    def read(self, purpose: str, token: str, parts: int) -> list[str]:
        """Return the parts of a token; Refused where it was not signed here for this purpose."""
        try:
            found = self._signer(purpose).unsign(token).decode().split("~")
        except (BadData, UnicodeError):
            found = []
        if len(found) != parts:
            raise Refused("forged", "This token was not made by this arena.")
        return found

    def battle(self, battle: str, voter: str, expires: int) -> str:
        """Return what the page holds: the battle, to whom it was shown, and until when (ms) it may be judged."""
        return self.sign("battle", battle, self._holder(voter), expires)

    def read_battle(self, token: str, voter: str, now: int) -> str:
        """Return the battle of a token. Refused where it was not signed here, is another voter's, or has expired."""
        battle, holder, expires = self.read("battle", token, 3)
        if not hmac.compare_digest(holder, self._holder(voter)):
            raise Refused("forged", "This battle was shown to somebody else. Ask for one of your own.")
        if now >= int(expires):
            raise Refused("expired", "This battle is too old to be judged. Ask for a new one.")
        return battle

    def digest(self, purpose: str, value: str, salt: str = "") -> str:
        """Return a keyed hash, 32 hex characters."""
        key = f"{self._secret}{salt}".encode()
        return hmac.new(key, f"{purpose}\0{value}".encode(), "sha256").hexdigest()[:32]

    def _holder(self, voter: str) -> str:
        return self.digest("holder", voter)[:16]

    def _signer(self, purpose: str) -> Signer:
        if purpose not in self._signers:
            self._signers[purpose] = Signer(self._secret, salt=f"palate.{purpose}", digest_method=sha256)
        return self._signers[purpose]

"""What the arena refuses, with the HTTP status and a code that a page can act on."""

from __future__ import annotations

from palate.errors import UserError


class Refused(UserError):
    """A request that is not granted. Nothing was written.

    code: one word for programs (`CODES`); the message is for people; `more` goes into the JSON answer.
    """

    def __init__(self, code: str, message: str, **more: object) -> None:
        super().__init__(message)
        self.code, self.more = code, more

    @property
    def status(self) -> int:
        """HTTP status."""
        return CODES[self.code]

    def answer(self) -> dict[str, object]:
        """Return the body of the HTTP answer."""
        return {"error": self.code, "message": str(self), **self.more}


CODES: dict[str, int] = {
    "invalid": 400,  # a field is missing or wrong
    "forged": 403,  # a token that this arena did not sign, or that belongs to another voter
    "consent": 403,  # the voter has not agreed to the text in `consent`
    "excluded": 403,  # the owner has excluded this voter
    "login": 401,  # the admin page needs its password
    "missing": 404,
    "conflict": 409,  # another outcome is recorded, the battle was skipped, or it has been revealed
    "exhausted": 409,  # there is nothing left that this voter may judge
    "expired": 410,
    "large": 413,
    "limit": 429,  # too many; the message says when to come back
    "busy": 503,
}

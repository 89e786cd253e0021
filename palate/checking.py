"""Checks with which records take in their fields: a UserError names the field, what it held and what it should."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Any

from palate.errors import UserError


def settle(record: Any, name: str, value: Any) -> None:
    """Set a field of a frozen record once, from its __post_init__."""
    object.__setattr__(record, name, value)


def shown(value: Any) -> str:
    """Return `value` for a message: its type and at most 60 characters of it."""
    text = repr(value[:60] if isinstance(value, (str, bytes)) else value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def checked_text(name: str, value: Any, empty: bool = False) -> None:
    if not isinstance(value, str):
        raise UserError(f"{name} must be a str, not {shown(value)}.")
    if not empty and not value.strip():
        raise UserError(f"{name} is empty. Give it a text, or leave the record out.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} is not valid Unicode (a lone surrogate): {shown(value)}. Decode it again.") from None


def checked_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value)  # int, bool, Decimal, and the scalars of numpy, arrow and torch
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name} must be a number, not {shown(value)}.") from None
    if not math.isfinite(number) or not low <= number <= high:
        span = "finite" if math.isinf(low) else f"from {low:g} to {high:g}"
        raise UserError(f"{name} must be {span}, not {number}.")
    return number


def checked_mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must be a mapping, not {shown(value)}.")
    return dict(value)


def checked_date(name: str, value: str) -> None:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise UserError(f"{name} must be a date in ISO 8601 such as 2026-01-31T12:00:00Z, not {value!r}.") from None


def digest(parts: Iterable[str]) -> str:
    """Return a content id of a sequence of texts: 32 hex characters."""
    state = blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        state.update(len(encoded).to_bytes(8, "little") + encoded)
    return state.hexdigest()

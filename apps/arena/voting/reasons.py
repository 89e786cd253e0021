"""Why one result was better: the chips that a voter may press."""

from __future__ import annotations

from collections.abc import Sequence

from apps.arena.errors import Refused
from palate.errors import unknown

REASONS: dict[str, dict[str, str]] = {
    "image": {
        "prompt": "follows the prompt",
        "beauty": "more beautiful",
        "flaws": "fewer flaws",
        "detail": "finer detail",
        "text": "better lettering",
    },
    "text": {
        "correct": "more correct",
        "seen": "sees the picture better",
        "invented": "makes less up",
        "helpful": "more helpful",
        "clear": "clearer",
    },
}
"""Kind of battle -> key -> label."""


def check_reasons(kind: str, reasons: Sequence[str]) -> list[str]:
    """Return the reasons in the table's order, each once; Refused for one that is not there."""
    known = REASONS[kind]
    for reason in reasons:
        if reason not in known:
            raise Refused("invalid", unknown("reason", str(reason), known))
    return [reason for reason in known if reason in reasons]

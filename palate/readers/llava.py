"""LLaVA's instruction data (2304.08485): id, image (a name; none for text alone), conversations of turns {from, value}.

Every answer in a conversation is an exchange, whose prompt is all that was said before it.
"""

from __future__ import annotations

from palate.readers.drafts import Draft, Row, exchange_reader, provenance
from palate.readers.reader import Unreadable
from palate.readers.turns import answer, turns


def unfold(row: Row) -> list[Row]:
    """Return one row for each answer, its conversation cut after it."""
    said = row["conversations"]
    if not isinstance(said, list):
        raise Unreadable("conversations is not a list", "It is a list of turns {from, value}.")
    messages = turns("conversations", said) if said else ()
    ends = [number for number, message in enumerate(messages, 1) if message.role == "assistant"]
    return [{**row, "conversations": said[:end]} for end in ends]


def draft(row: Row) -> Draft:
    *before, last = row["conversations"]
    if not before:
        raise Unreadable("conversations begins with an answer", "Put the question before it.")
    fields = {
        "answer": answer("conversations", [last]),
        "source": "llava",
        "meta": provenance(row, ("id",)),
    }
    return Draft(turns("conversations", before), fields)


READER = exchange_reader(
    "llava",
    draft,
    prompt="conversations",
    needs=("conversations",),
    cheap=("id",),
    unfold=unfold,
    nothing="without an answer",
)

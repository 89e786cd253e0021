"""POVID's preference data (2402.11411): id, image (a name), conversations and rejected_conversations, LLaVA's turns.

The last turn of each is the answer, chosen and rejected; the turns before it are the prompt.
"""

from __future__ import annotations

from palate.readers.drafts import Draft, Row, pair_reader, provenance
from palate.readers.reader import Unreadable
from palate.readers.turns import answer, turns


def draft(row: Row) -> Draft:
    chosen, rejected = (row[name] for name in ("conversations", "rejected_conversations"))
    for name, value in (("conversations", chosen), ("rejected_conversations", rejected)):
        if not isinstance(value, list) or len(value) < 2:
            raise Unreadable(f"{name} has no question and answer", "It is a list of turns {from, value}.")
    fields = {
        "chosen": answer("conversations", chosen[-1:]),
        "rejected": answer("rejected_conversations", rejected[-1:]),
        "source": "povid",
        "meta": provenance(row, ("id",)),
    }
    return Draft(turns("conversations", chosen[:-1]), fields)


READER = pair_reader(
    "povid", draft, prompt="conversations", needs=("conversations", "rejected_conversations"), cheap=("id",)
)

"""RLHF-V's preference data (2312.00849): image and text, a JSON object of question, chosen and rejected.

Chosen is the answer as people corrected it, so that dense_dpo's changed tokens are their corrections.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from palate.readers import rlaif_v
from palate.readers.drafts import Draft, Row, pair_reader
from palate.readers.reader import Unreadable


def draft(row: Row) -> Draft:
    said = row["text"]
    try:
        said = json.loads(said) if isinstance(said, str) else said
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, Mapping) or not {"question", "chosen", "rejected"} <= set(said):
        raise Unreadable("text is not question, chosen and rejected", "It is a JSON object with these three.")
    prompt, fields = rlaif_v.draft({**row, **said})
    return Draft(prompt, {**fields, "source": "rlhf_v"})


READER = pair_reader(
    "rlhf_v",
    draft,
    prompt="text",
    needs=("text", "image", "origin_dataset"),
    cheap=rlaif_v.PROVENANCE,
)

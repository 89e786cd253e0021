"""RLAIF-V's preference data (2405.17220): question, image, chosen, rejected (texts), and where they came from."""

from __future__ import annotations

from palate.readers.drafts import Draft, Row, pair_reader, provenance, text
from palate.readers.turns import turns

PROVENANCE = ("ds_name", "origin_dataset", "origin_split", "idx")


def draft(row: Row) -> Draft:
    fields = {
        "chosen": text("chosen", row["chosen"]),
        "rejected": text("rejected", row["rejected"]),
        "source": "rlaif_v",
        "meta": provenance(row, PROVENANCE),
    }
    return Draft(turns("question", text("question", row["question"])), fields)


READER = pair_reader(
    "rlaif_v",
    draft,
    prompt="question",
    needs=("question", "image", "chosen", "rejected"),
    cheap=PROVENANCE,
)

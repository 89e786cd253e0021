"""The canonical pairs of answers: TRL's vision preference columns, prompt, chosen, rejected (messages or texts) and
images (or one image), with rejected_images, p_chosen, score_gap, source and meta where they are known.
"""

from __future__ import annotations

from palate.readers.drafts import Draft, Row, pair_reader
from palate.readers.reader import gap_of, meta_of
from palate.readers.turns import answer, turns


def draft(row: Row) -> Draft:
    fields = {
        "chosen": answer("chosen", row["chosen"]),
        "rejected": answer("rejected", row["rejected"]),
        "score_gap": gap_of(row.get("score_gap")),
        "source": row.get("source") or "",
        "meta": meta_of(row.get("meta")),
    }
    return Draft(turns("prompt", row["prompt"]), fields)


READER = pair_reader(
    "canonical",
    draft,
    prompt="prompt",
    needs=("prompt", "chosen", "rejected"),
    images=("images", "image"),
    cheap=("p_chosen", "score_gap", "source", "meta"),
)

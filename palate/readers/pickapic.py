"""Pick-a-Pic v1 and v2: caption, jpg_0, jpg_1 (bytes or paths), label_0, label_1 (.5 each is a tie).

Columns as on the cards of the yuvalkirstain/pickapic_v1 and pickapic_v2 datasets. Where `has_label` or `are_different`
is there and false, the row holds no preference and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from palate.readers.columns import blank, floats
from palate.readers.reader import Reader, Rows, Verdict, image, outcome_of_labels, text_of
from palate.records import Pair

if TYPE_CHECKING:
    from palate.readers.columns import Column

DECLARED = {"has_label": "not labelled", "are_different": "identical images"}
PROVENANCE = ("ranking_id", "user_id", "created_at")


def judge(columns: Mapping[str, Column]) -> Verdict:
    captions = blank("caption", columns["caption"])
    labels = outcome_of_labels(("label_0", "label_1"), columns)
    verdict = Verdict(p_first=labels.p_first)
    verdict.blame(captions, "caption is empty or not text", "Give it a text, or leave the row out.")
    for row, blame in labels.bad.items():
        verdict.bad.setdefault(row, blame)
    for name, reason in DECLARED.items():
        if name in columns:
            verdict.unusable[reason] = floats(name, columns[name]) == 0
    return verdict


def build(row: Mapping[str, Any], p_first: float, rows: Rows) -> Pair:
    """The likelier image is the chosen one; in a tie it is the first, with p_chosen = 1/2."""
    win, lose = (0, 1) if p_first >= 0.5 else (1, 0)
    outputs = [image(f"jpg_{side}", row[f"jpg_{side}"], rows) for side in (0, 1)]
    meta: dict[str, Any] = {name: text_of(row[name]) for name in PROVENANCE if row.get(name) is not None}
    models = {outputs[side].id: text_of(row[f"model_{side}"]) for side in (0, 1) if row.get(f"model_{side}")}
    if models:
        meta["models"] = models
    return Pair(
        prompt=row["caption"],
        chosen=outputs[win],
        rejected=outputs[lose],
        p_chosen=max(p_first, 1 - p_first),
        source="pickapic",
        meta=meta,
    )


READER = Reader(
    name="pickapic",
    prompt="caption",
    needs=("caption", "jpg_0", "jpg_1", "label_0", "label_1"),
    cheap=("caption", "label_0", "label_1", *DECLARED),
    also=("model_0", "model_1", *PROVENANCE),
    judge=judge,
    build=build,
)

"""The canonical text-to-image pairs: prompt, chosen, rejected (images), and what is known about the preference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from palate.readers.columns import blank, null
from palate.readers.reader import Reader, Rows, Verdict, gap_of, image, judge_labels, meta_of
from palate.records import Pair

if TYPE_CHECKING:
    from palate.readers.columns import Column

CAPTIONS = ("prompt_chosen", "prompt_rejected")


def judge(columns: Mapping[str, Column]) -> Verdict:
    prompts = blank("prompt", columns["prompt"])
    verdict = Verdict(p_first=np.ones(len(prompts)))
    verdict.blame(prompts, "prompt is empty or not text", "Give it a text, or leave the row out.")
    for name in CAPTIONS:
        if name in columns:
            empty = blank(name, columns[name]) & ~null(columns[name])
            verdict.blame(empty, f"{name} is empty or not text", "Give it a text, or null where there is none.")
    judge_labels(verdict, columns)
    return verdict


def build(row: Mapping[str, Any], p_first: float, rows: Rows) -> Pair:
    return Pair(
        prompt=row["prompt"],
        chosen=image("chosen", row["chosen"], rows),
        rejected=image("rejected", row["rejected"], rows),
        prompt_chosen=row.get("prompt_chosen"),
        prompt_rejected=row.get("prompt_rejected"),
        p_chosen=p_first,
        score_gap=gap_of(row.get("score_gap")),
        source=row.get("source") or "",
        meta=meta_of(row.get("meta")),
    )


READER = Reader(
    name="canonical",
    prompt="prompt",
    needs=("prompt", "chosen", "rejected"),
    cheap=("prompt", *CAPTIONS, "p_chosen", "score_gap"),
    also=("source", "meta"),
    judge=judge,
    build=build,
    first_is_chosen=True,
)

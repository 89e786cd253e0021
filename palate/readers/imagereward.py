"""ImageRewardDB. The repository's data/*.json: prompt, generations, ranking; the dataset's metadata-*.parquet: a row an
image, with prompt_id, prompt, image_path, rank and image_amount_in_total. 1 is the best rank, and equal ranks are ties.

Fields as on the card of the THUDM/ImageRewardDB dataset (2304.05977).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palate.readers.hpdv2 import ranks
from palate.readers.reader import Unreadable


def ranking(row: Mapping[str, Any]) -> tuple[str, Sequence[str], Sequence[float], Mapping[str, Any]]:
    """Return prompt, paths, and the ranks with their sign turned."""
    paths = row["generations"]
    meta = {"id": row["id"]} if row.get("id") else {}
    values = [-rank for rank in ranks("ranking", row["ranking"], paths)]
    wanted = row.get("images")
    if wanted is not None and wanted != len(paths):
        raise Unreadable(
            f"{len(paths)} images of a prompt that has {wanted}",
            "Give the whole metadata file, not a part of its rows.",
        )
    return row["prompt"], paths, values, meta


def by_prompt(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a prompt, as the repository's JSON has it, of the dataset's rows, one an image."""
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        empty: dict[str, Any] = {"id": row["prompt_id"], "prompt": row["prompt"], "generations": [], "ranking": []}
        group = groups.setdefault(str(row["prompt_id"]), empty | {"images": row["image_amount_in_total"]})
        group["generations"].append(row["image_path"])
        group["ranking"].append(row["rank"])
    return list(groups.values())

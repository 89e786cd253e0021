"""HPDv2's annotations. test.json: prompt, image_path, rank, raw_annotations; train.json: prompt, file_path or image_path,
human_preference. Fields as on the card of the ymhao/HPDv2 dataset and in the readme of HPSv2 (2306.09341).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palate.readers.reader import Unreadable


def ranking(row: Mapping[str, Any]) -> tuple[str, Sequence[str], Sequence[float], Mapping[str, Any]]:
    """Return prompt, paths, and the annotators' average rank (1 is best) with its sign turned.

    `meta["annotators"]` has each annotator's own. The two releases keep them as lists, or as {rank, user_hash}.
    """
    paths = row["image_path"]
    meta = {}
    if row.get("raw_annotations"):
        meta["annotators"] = [
            [-rank for rank in ranks("raw_annotations", each["rank"] if isinstance(each, Mapping) else each, paths)]
            for each in row["raw_annotations"]
        ]
    return row["prompt"], paths, [-rank for rank in ranks("rank", row["rank"], paths)], meta


def choice(row: Mapping[str, Any]) -> tuple[str, Sequence[str], Sequence[float], Mapping[str, Any]]:
    """Return prompt, paths, and 1 for the image that was preferred, 0 for the others."""
    paths = row.get("image_path") or row.get("file_path")
    if paths is None:
        raise Unreadable("image_path and file_path are both missing", "Name the images of the row.")
    labels = ranks("human_preference", row["human_preference"], paths)
    if sorted(labels) != [0.0] * (len(labels) - 1) + [1.0]:
        raise Unreadable("human_preference is not one 1 among zeros", "Mark the preferred image, and only it.")
    return row["prompt"], paths, labels, {}


def ranks(name: str, values: Any, paths: Any) -> list[float]:
    """Return the values as numbers, one an image. Raises Unreadable."""
    if not isinstance(paths, Sequence) or isinstance(paths, str):
        raise Unreadable("the images are not a list", "Give a list of paths.")
    if not isinstance(values, Sequence) or len(values) != len(paths):
        raise Unreadable(f"{name} does not have a value for each image", "Give one number an image, in their order.")
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        raise Unreadable(f"{name} holds something else than numbers", "Give one number an image, in their order.")
    return [float(value) for value in values]

"""Builders of rejected answers: each takes true answers and yields pairs, and writes what it did into them.

    exchanges = open_exchanges("llava_instruct_150k.json", image_root="train2017")
    print(build_pairs(Swapped(seed=0), exchanges, "pairs.parquet"))

`METHODS` is the table; the modules with models are imported when they are asked for.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from vlm.rejected.building import Builder, Built, Made, build_pairs
from vlm.rejected.swap import Swapped, swap

__all__ = ["METHODS", "Builder", "Built", "Made", "Method", "Swapped", "build_pairs", "swap"]


class Method(NamedTuple):
    """What a builder does, and who has to answer for it: nobody, the model that is trained, or any writer of text."""

    summary: str
    needs: Literal["nothing", "model", "writer"]


METHODS: dict[str, Method] = {
    "swap": Method("swap listed objects, attributes, relations and counts for others of their kind", "nothing"),
    "povid-inject": Method(
        "a writer adds co-occurring objects, wrong relations and attributes, or wrong reasoning", "writer"
    ),
    "povid-noise": Method(
        "the model's likeliest tokens beside the true ones, under a noised image (step 500)", "model"
    ),
    "bpo-weaken": Method("the model's own answer under an image noised to step 900, at temperature .2", "model"),
    "bpo-inject": Method("a writer changes details, or answers for a similar but different image", "writer"),
}

"""Which weights of a CLIP belong to which part, and which of them stand before the blocks that are trained.

Told by the weights' names, which open_clip, timm and transformers have given alike for years.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from palate.errors import UserError

Part = Literal["image", "text", "scale"]

_IMAGE = ("visual.", "vision_model.", "visual_projection.")
_SCALE = ("logit_scale", "logit_bias")
_BLOCK = re.compile(r"(.+\.(?:resblocks|blocks|layers|layer))\.(\d+)\.")
_BEFORE = {
    *("conv1", "class_embedding", "positional_embedding", "ln_pre"),  # open_clip, image
    *("token_embedding", "cls_emb"),  # open_clip, text
    *("embeddings", "pre_layrnorm"),  # transformers
    *("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre"),  # timm
}


def part_of(name: str) -> Part:
    """Return the part that a weight of a CLIP belongs to."""
    if name in _SCALE:
        return "scale"
    return "image" if name.startswith(_IMAGE) else "text"


def trained_names(names: Iterable[str], part: Part, blocks: int | None) -> set[str]:
    """Return the weights of a tower that are trained: its last `blocks` blocks and what follows them.

    What follows are the last norm, the pooling and the projection. None trains the whole tower, 0 nothing of it.
    UserError where the tower has fewer blocks, or is not one row of them.

    HPSv2's "last 20 layers" of 32 are counted by its code in groups of open_clip's `lock_image_tower`, of which the
    projection is one: 19 blocks.
    """
    mine = [name for name in names if part_of(name) == part]
    if blocks is None:
        return set(mine)
    if blocks == 0:
        return set()
    found = {name: match for name in mine if (match := _BLOCK.match(name))}
    rows = {match[1] for match in found.values()}
    if len(rows) != 1:
        raise UserError(
            f"The {part} tower is not one row of blocks, so that the last {blocks} of them are not defined. Train all of "
            f"it (--model.{part}_blocks null) or nothing (0)."
        )
    count = 1 + max(int(match[2]) for match in found.values())
    if blocks > count:
        raise UserError(f"--model.{part}_blocks {blocks}: the {part} tower has {count} blocks. null trains all of it.")
    after = {name for name in mine if name not in found and not _BEFORE & set(name.split("."))}
    return after | {name for name, match in found.items() if int(match[2]) >= count - blocks}

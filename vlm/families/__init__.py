"""Adapters to vision-language architectures. `FAMILIES` is the table; `family_of` picks from it."""

from __future__ import annotations

from typing import Any

from palate.errors import UserError, unknown
from vlm.families.base import Family
from vlm.families.gemma import Gemma3, PaliGemma
from vlm.families.idefics3 import Idefics3
from vlm.families.internvl import InternVL
from vlm.families.llava import Llava, LlavaNext
from vlm.families.qwen import Qwen3VL, QwenVL

FAMILIES: dict[str, type[Family]] = {
    "llava": Llava,
    "llava_next": LlavaNext,
    "idefics3": Idefics3,
    "smolvlm": Idefics3,
    "internvl": InternVL,
    "qwen2_vl": QwenVL,
    "qwen2_5_vl": QwenVL,
    "qwen3_vl": Qwen3VL,
    "gemma3": Gemma3,
    "paligemma": PaliGemma,
}
"""`model_type` in config.json -> family."""


def family_of(config: Any) -> Family:
    """Return the family of a model's configuration; raises UserError where no family covers it."""
    if config.model_type not in FAMILIES:
        raise UserError(unknown("vision-language model type", str(config.model_type), FAMILIES))
    return FAMILIES[config.model_type](config)

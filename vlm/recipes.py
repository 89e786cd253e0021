"""Published methods as corruption x terms: what each optimises, and where its paper and its code differ.

Slots that terms may name: `chosen` and `rejected`, the answers given the image; `noisy`, the tokens that the policy finds
likeliest under the corrupted image after each prefix of the chosen answer, scored given the image; `corrupted`, the
chosen answer given the corrupted image. Objectives that weigh tokens (dense_dpo) read the weighted scores of their slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from palate.errors import UserError, unknown
from palate.objectives import Schedule, Term
from vlm.corruption import Corruption

Fidelity = Literal["paper", "code"]
SLOTS = ("chosen", "rejected", "noisy", "corrupted")
CUSTOM = "custom"


@dataclass(frozen=True)
class Recipe:
    """What a method optimises."""

    terms: tuple[Term, ...]
    source: str
    """arXiv id, and the repository of the released code."""
    corruption: Corruption = field(default_factory=Corruption)
    mixtures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Slots that are weighted sums of others: name -> slot -> weight."""
    code: Recipe | None = None
    """What the released code optimises instead, where it differs."""
    difference: str = ""
    """What differs, in a sentence."""


_POVID = "2402.11411; YiyangZhou/POVID"
_NOISE = Corruption("noise", step=500)

RECIPES: dict[str, Recipe] = {
    "dpo": Recipe((Term("dpo"),), "2305.18290"),
    "simpo": Recipe((Term("simpo", beta=2.0, params={"gamma": 0.5}),), "2405.14734"),
    "povid_stage1": Recipe((Term("dpo"),), _POVID),
    "povid_stage2": Recipe(
        (Term("dpo", rejected="worse"),),
        _POVID,
        corruption=_NOISE,
        mixtures={"worse": {"rejected": 0.5, "noisy": 0.5}},
        code=Recipe(
            (
                Term("dpo", weight=0.5, rejected="noisy"),
                Term("dpo", weight=0.5),
            ),
            _POVID,
            corruption=_NOISE,
        ),
        difference="paper: one sigmoid over both rejected answers; code: half the loss of each",
    ),
    "bpo": Recipe((Term("dpo"),), "2403.08730; pipilurj/bootstrapped-preference-optimization-BPO"),
    "mdpo": Recipe(
        (
            Term("dpo"),
            Term("dpo", rejected="corrupted"),
            Term("anchor"),
        ),
        "2406.11839; luka-group/mDPO",
        corruption=Corruption("crop", least_area=0.01, most_area=0.2),
    ),
    "rlhf_v": Recipe((Term("dense_dpo", beta=0.5),), "2312.00849"),
}


def resolve(
    recipe: str,
    fidelity: Fidelity,
    *,
    terms: list[Term],
    corruption: Corruption,
    mixtures: Mapping[str, Mapping[str, float]],
    beta: float | Schedule | None = None,
) -> Recipe:
    """Return the recipe of that name, or by "custom" the one that terms, corruption and mixtures make.

    beta: where it is given, the terms of a named recipe leave theirs to it.

    Raises UserError for an unknown name, and where a named recipe is given terms, a corruption or mixtures of its own.
    """
    if recipe == CUSTOM:
        _check_mixtures(mixtures)
        return Recipe(tuple(terms), "", corruption, mixtures)
    if recipe not in RECIPES:
        raise UserError(unknown("recipe", recipe, (*RECIPES, CUSTOM)))
    if terms != [Term()] or corruption != Corruption() or mixtures:
        raise UserError(
            f"The recipe {recipe!r} has terms, a corruption and mixtures of its own. To set yours, write "
            "--objective.recipe custom; docs/vlm.md lists what each recipe stands for."
        )
    found = RECIPES[recipe]
    found = found.code if fidelity == "code" and found.code is not None else found
    own = tuple(replace(term, beta=None) for term in found.terms) if beta is not None else found.terms
    return replace(found, terms=own)


def _check_mixtures(mixtures: Mapping[str, Mapping[str, float]]) -> None:
    for name, weights in mixtures.items():
        if name in SLOTS or not weights:
            raise UserError(
                f"The mixture {name!r} needs a new name and at least one slot, e.g. {{worse: {{noisy: 1}}}}."
            )
        for slot in weights:
            if slot not in SLOTS:
                raise UserError(unknown(f"slot in the mixture {name!r}:", slot, SLOTS))

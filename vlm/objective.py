"""The loss of a recipe: which slots its terms name, and what a run must have for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from palate.errors import UserError
from palate.objectives import OBJECTIVES, Loss, Term
from palate.training import objective as preference
from vlm.recipes import SLOTS, Recipe
from vlm.settings import VLMConfig

WEIGHED = "/weighed"
"""What follows the name of a slot whose score weighs changed tokens."""


def build_loss(config: VLMConfig, recipe: Recipe, data: Mapping[str, bool | str]) -> Loss:
    """Return the loss; raises UserError for what data, settings or a language model cannot give.

    data: what the data have (`palate.training.source.RecordSource.data_available`).
    """
    loss = preference.build_loss(
        config.objective,
        "language",
        available(config, data),
        terms=weighed_terms(recipe.terms),
        slots=slot_names(recipe),
    )
    wanted = Wanted.by(loss, recipe)
    if config.reference.kind == "cached":
        if config.data.streaming:
            raise UserError(
                "--reference.kind cached goes over all pairs first; a stream has no end. Set --data.streaming false."
            )
        if "reference" not in loss.needs:
            raise UserError("This loss needs no reference. Leave --reference.kind at online: none is loaded.")
        if wanted.noisy:
            raise UserError(
                "The slot noisy holds tokens that the policy finds as it trains, so their reference scores cannot be "
                "computed before. Set --reference.kind online."
            )
    if wanted.corruption and recipe.corruption.kind == "none":
        raise UserError("The slots noisy and corrupted need a corrupted image: set --objective.corruption.kind.")
    return loss


def available(config: VLMConfig, data: Mapping[str, bool | str]) -> dict[str, bool | str]:
    """Say what an objective may need and this run has (see `palate.objectives.build`)."""
    cached = config.reference.kind == "cached"
    live: bool | str = "the reference is cached (--reference.kind cached); set it to online" if cached else True
    mismatched: bool | str = live
    if config.train.batch_size < 2:
        mismatched = "they come from the other pairs of a micro-batch, and --train.batch_size is 1"
    return {
        **dict.fromkeys(("reference", "lengths", "token_weights"), True),
        "live_reference": live,
        "token_kl": live,
        "mismatched": mismatched,
        **data,
    }


def weighed_terms(terms: Sequence[Term]) -> list[Term]:
    """Return the terms with the slots of those that weigh tokens renamed to the weighed ones."""
    return [
        replace(term, chosen=term.chosen + WEIGHED, rejected=term.rejected + WEIGHED) if _weighs(term) else term
        for term in terms
    ]


def slot_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the slots that terms may name, for `palate.objectives.build`."""
    return (*SLOTS, "chosen" + WEIGHED, "rejected" + WEIGHED, *recipe.mixtures)


@dataclass(frozen=True)
class Wanted:
    """What a loss and its mixtures ask of a step."""

    noisy: bool
    corrupted: bool
    weighed: bool
    kl: bool
    mismatched: bool

    @classmethod
    def by(cls, loss: Loss, recipe: Recipe) -> Wanted:
        named = {name for term in loss.terms for name in (term.chosen, term.rejected)}
        named |= {slot for name in named for slot in recipe.mixtures.get(name, ())}
        return cls(
            noisy="noisy" in named,
            corrupted="corrupted" in named,
            weighed=any(name.endswith(WEIGHED) for name in named),
            kl="token_kl" in loss.needs,
            mismatched="mismatched" in loss.needs,
        )

    @property
    def corruption(self) -> bool:
        """Whether any slot sees a corrupted image."""
        return self.noisy or self.corrupted


def _weighs(term: Term) -> bool:
    return term.objective in OBJECTIVES and "token_weights" in OBJECTIVES[term.objective].needs

"""Recipes are sums of terms with the values that hands compute, and what cannot run is refused by name."""

from __future__ import annotations

import math

import pytest
import torch

from palate.errors import UserError
from palate.objectives import ResponseScores, Term, build
from tests.vlm.runs import config_of
from vlm.corruption import Corruption
from vlm.method import _mixed
from vlm.objective import Wanted, build_loss, slot_names, weighed_terms
from vlm.recipes import RECIPES, resolve

ALL = dict.fromkeys(("reference", "live_reference", "lengths", "token_weights", "token_kl", "batch_stats"), True)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def slots(**rewards: float) -> dict[str, ResponseScores]:
    """Return slots whose policy scores exceed their reference's (10) by these nats, with 5 tokens each."""
    return {
        name: ResponseScores(torch.tensor([10 + r]), torch.tensor([10.0]), torch.tensor([5]))
        for name, r in rewards.items()
    }


def loss_of(name: str, fidelity: str = "paper", **rewards: float) -> float:
    recipe = resolve(name, fidelity, terms=[Term()], corruption=Corruption(), mixtures={})  # type: ignore[arg-type]
    loss = build(weighed_terms(recipe.terms), modality="language", available=ALL, slots=slot_names(recipe))
    given = slots(**rewards)
    given |= {f"{slot}/weighed": scores for slot, scores in given.items()}
    given |= {mixed: _mixed(given, weights) for mixed, weights in recipe.mixtures.items()}
    return float(loss(given)[0])


def test_povid_stage_2_by_hand():
    """beta .1, r_w = 3, r_text = -2, r_noisy = 1.

    code: 1/2 softplus(-.1 (3 + 2)) + 1/2 softplus(-.1 (3 - 1)) = 1/2 softplus(-.5) + 1/2 softplus(-.2)
    paper: softplus(-(.1 * 3 - (.05 * -2 + .05 * 1))) = softplus(-.35)
    """
    rewards = {"chosen": 3.0, "rejected": -2.0, "noisy": 1.0}
    assert loss_of("povid_stage2", "code", **rewards) == pytest.approx((softplus(-0.5) + softplus(-0.2)) / 2, rel=1e-5)
    assert loss_of("povid_stage2", "paper", **rewards) == pytest.approx(softplus(-0.35), rel=1e-5)


def test_the_two_forms_of_povid_agree_where_nothing_was_learned_yet():
    """At r = 0 both cost ln 2 and pull with 1/2 beta on chosen and -1/4 beta on either rejected answer."""
    for fidelity in ("paper", "code"):
        assert loss_of("povid_stage2", fidelity, chosen=0.0, rejected=0.0, noisy=0.0) == pytest.approx(math.log(2))
        for slot, pull in (("chosen", -0.05), ("rejected", 0.025), ("noisy", 0.025)):
            up, down = ({"chosen": 0.0, "rejected": 0.0, "noisy": 0.0, slot: step} for step in (0.01, -0.01))
            slope = (loss_of("povid_stage2", fidelity, **up) - loss_of("povid_stage2", fidelity, **down)) / 0.02
            assert slope == pytest.approx(pull, rel=1e-2)


def test_mdpo_by_hand():
    """softplus(-.1 (3 + 2)) + softplus(-.1 (3 - 1)) + softplus(-.1 * 3), whatever the fidelity."""
    expected = softplus(-0.5) + softplus(-0.2) + softplus(-0.3)
    for fidelity in ("paper", "code"):
        assert loss_of("mdpo", fidelity, chosen=3.0, rejected=-2.0, corrupted=1.0) == pytest.approx(expected, rel=1e-5)


def test_the_others_by_hand():
    """dpo, bpo: softplus(-.1 * 5); rlhf_v: softplus(-.5 * 5), scores weighed; simpo: (13 - 8) / 5 = 1, softplus(.5 - 2)."""
    rewards = {"chosen": 3.0, "rejected": -2.0}
    for name in ("dpo", "povid_stage1", "bpo"):
        assert loss_of(name, **rewards) == pytest.approx(softplus(-0.5), rel=1e-5)
    assert loss_of("rlhf_v", **rewards) == pytest.approx(softplus(-2.5), rel=1e-5)
    assert loss_of("simpo", **rewards) == pytest.approx(softplus(-1.5), rel=1e-5)


def test_a_beta_of_the_run_replaces_the_recipes():
    for name in ("rlhf_v", "mdpo", "simpo"):
        recipe = resolve(name, "paper", terms=[Term()], corruption=Corruption(), mixtures={}, beta=0.3)
        loss = build(
            weighed_terms(recipe.terms), modality="language", beta=0.3, available=ALL, slots=slot_names(recipe)
        )
        assert {loss.beta(term) for term in loss.terms} == {0.3}


def test_a_recipe_is_asked_for_no_more_than_it_needs():
    wanted = {name: Wanted.by(_built(name), RECIPES[name]) for name in RECIPES}
    assert {name for name, found in wanted.items() if found.noisy} == {"povid_stage2"}
    assert {name for name, found in wanted.items() if found.corrupted} == {"mdpo"}
    assert {name for name, found in wanted.items() if found.weighed} == {"rlhf_v"}
    assert not any(found.kl or found.mismatched for found in wanted.values())


def _built(name: str):
    recipe = RECIPES[name]
    return build(weighed_terms(recipe.terms), modality="language", available=ALL, slots=slot_names(recipe))


CACHED = {"reference.kind": "cached"}
CUSTOM = {"objective.recipe": "custom"}
REFUSED = {
    "unknown": ({"objective.recipe": "povid_stage"}, "Unknown recipe 'povid_stage'; did you mean 'povid_stage"),
    "own terms": ({"objective.recipe": "mdpo", "objective.terms": [{"objective": "ipo"}]}, "--objective.recipe custom"),
    "own corruption": ({"objective.corruption.kind": "blank"}, "--objective.recipe custom"),
    "mixture of nothing": ({**CUSTOM, "objective.mixtures": {"worse": {}}}, "at least one slot"),
    "mixture of an unknown slot": ({**CUSTOM, "objective.mixtures": {"worse": {"noise": 1}}}, "did you mean 'noisy'"),
    "unknown slot": ({**CUSTOM, "objective.terms": [{"rejected": "noise"}]}, "did you mean 'noisy'"),
    "no corruption": ({**CUSTOM, "objective.terms": [{"rejected": "noisy"}]}, "--objective.corruption.kind"),
    "cached and noisy": ({**CACHED, "objective.recipe": "povid_stage2"}, "Set --reference.kind online"),
    "cached and tdpo": (
        {**CACHED, **CUSTOM, "objective.terms": [{"objective": "tdpo"}]},
        "tdpo needs a reference model that runs",
    ),
    "cached and no need": ({**CACHED, "objective.recipe": "simpo"}, "needs no reference"),
    "cached stream": ({**CACHED, "data.streaming": True}, "a stream has no end"),
    "kto alone": ({**CUSTOM, "train.batch_size": 1, "objective.terms": [{"objective": "kto"}]}, "batch_size is 1"),
    "images only": ({**CUSTOM, "objective.terms": [{"objective": "mapo"}]}, "mapo is for diffusion models only"),
    "gap": ({**CUSTOM, "objective.terms": [{"objective": "odpo"}]}, "odpo needs score_gap: 2 of 3 rows have none"),
    "weighed noise": ({**CUSTOM, "objective.terms": [{"objective": "dense_dpo", "rejected": "noisy"}]}, "Unknown slot"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_is_refused(case: str):
    settings, says = REFUSED[case]
    config = config_of(settings)
    have = {"score_gap": "2 of 3 rows have none", "batch_stats": True, "ranking": True}
    with pytest.raises(UserError, match=says):
        objective = config.objective
        recipe = resolve(
            objective.recipe,
            objective.fidelity,
            terms=objective.terms,
            corruption=objective.corruption,
            mixtures=objective.mixtures,
        )
        build_loss(config, recipe, have)

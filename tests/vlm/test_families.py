"""Every family: a shared prompt, a prompt for each answer and transformers' own forward are one and the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from palate.errors import UserError
from tests.tiny_vlm import FAMILIES, picture, question
from tests.vlm.batches import mixed_batch, mixed_items
from vlm.encoding import Encoder
from vlm.families import FAMILIES as TABLE
from vlm.families import family_of
from vlm.loading import Loaded
from vlm.scoring import AnswerScores
from vlm.self_test import may_share, plain_logps
from vlm.tuning import tune

every_family = pytest.mark.parametrize("name", FAMILIES)


def gradients(loaded: Loaded, logps: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a fixed random weighting of the log-probabilities, by parameter."""
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    parameters = dict(loaded.model.named_parameters())
    found = torch.autograd.grad((weights * logps)[mask].sum(), list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found) if gradient is not None}


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest relative distance of two sets of gradients."""
    assert one.keys() == other.keys()
    # Gradients that are zero but for rounding (a key's bias, which softmax cancels) have no relative distance.
    floor = 5e-3 * max(float(g.norm()) for g in other.values())
    return max(float((one[n] - other[n]).norm() / (other[n].norm() + floor)) for n in other)


@every_family
def test_shared_equals_separate_equals_transformers(name: str, tiny: Callable[..., Loaded]):
    """Log-probabilities to 1e-5 and gradients to 1e-4, through tower, projector, language model and head.

    The third way is the model's own forward with full logits, one unpadded row at a time: nothing of palate is in it but
    the tokens.
    """
    loaded = tiny(name)
    batch = mixed_batch(loaded)
    plain = torch.stack([plain_logps(loaded, batch, k) for k in range(4)])
    by_plain = gradients(loaded, plain, batch.mask)
    seen = {loaded.family.part_of(n) for n, gradient in by_plain.items() if gradient.abs().max() > 1e-3}
    assert seen >= {"language", "projector", "tower"}, "the answers hardly depend on the images"
    for shared in (True, False):
        scores = AnswerScores(loaded, with_reference=False, shared=shared)(batch).policy
        assert scores is not None
        torch.testing.assert_close(scores[batch.mask], plain[batch.mask], atol=1e-5, rtol=0)
        assert not scores[~batch.mask].any()
        assert farthest(gradients(loaded, scores, batch.mask), by_plain) < 1e-4


@every_family
def test_the_tower_runs_once_over_distinct_images(name: str, tiny: Callable[..., Loaded]):
    """Five places of two distinct images: the tower is called once in a forward of policy and reference, with two images.

    How many it saw is read from the features it made: as many as two images have tokens.
    """
    loaded = tiny(name)
    batch = mixed_batch(loaded)
    assert [len(images) for images in batch.images] == [2, 0, 1, 1] and len(batch.image_tokens) == 2
    tune(loaded, language="full", projector="frozen", tower="frozen")
    module = AnswerScores(loaded)
    calls: list[int] = []
    tower = loaded.model.get_submodule(loaded.family.parts["tower"][0])
    tower.register_forward_hook(lambda *_: calls.append(1))
    module(batch)
    assert calls == [1]
    found = loaded.family.features(loaded.model, batch.pixels)
    assert found.shape[1] == sum(batch.image_tokens)


@every_family
def test_what_trains_is_what_gets_gradients(name: str, tiny: Callable[..., Loaded]):
    """`tune` leaves trainable all that an answer depends on, and no more: a DDP run would wait for a missing gradient."""
    loaded = tiny(name)
    batch = mixed_batch(loaded)

    def reached() -> set[str]:
        loaded.model.zero_grad()
        scores = AnswerScores(loaded, with_reference=False)(batch).policy
        assert scores is not None
        scores.sum().backward()
        named = loaded.model.named_parameters()
        return {n for n, p in named if p.grad is not None and loaded.family.part_of(n) is not None}

    with_all = reached()
    tune(loaded, language="full", projector="full", tower="full")
    trained = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert {loaded.family.part_of(n) for n in trained} == {"language", "projector", "tower"}
    assert reached() == trained == with_all


@every_family
def test_blank_and_noised_images_are_images(name: str, tiny: Callable[..., Loaded]):
    """Idefics3 takes tiles of zeros for padding, and padding with noise for tiles; each way the answers change."""
    loaded = tiny(name)
    module, batch = AnswerScores(loaded, with_reference=False), mixed_batch(loaded)
    with torch.no_grad():
        clean = module(batch).policy
        for change in (torch.zeros_like, lambda pixels: 0.5 * pixels + 0.5):
            found = module(batch.with_pixels(change)).policy
            moved = (found - clean).abs().amax((1, 2))
            assert moved[[0, 2, 3]].min() > 1e-3 and moved[1] < 1e-5


@every_family
def test_mrope_and_other_positions_are_those_of_the_model(name: str, tiny: Callable[..., Loaded]):
    loaded = tiny(name)
    encoder = Encoder(loaded, max_length=400)
    item = mixed_items(encoder)[0]
    positions, after = loaded.family.positions(item.prompt, item.images)
    if not hasattr(loaded.model.base_model, "get_rope_index"):
        first = int(name == "paligemma")
        assert positions.tolist() == [list(range(first, first + len(item.prompt)))] and after == first + len(
            item.prompt
        )
        return
    grids = torch.cat([image["image_grid_thw"] for image in item.images])
    types = (item.prompt == loaded.family.image_token_id).int()[None]
    own, _ = loaded.model.base_model.get_rope_index(item.prompt[None], types, grids)
    assert torch.equal(positions, own[:, 0]) and after == int(own.max()) + 1
    assert len(positions.unique(dim=0)) == 3, "the grids are too small to tell the rows apart"


@every_family
def test_kept_features_stand_for_the_tower(name: str, tiny: Callable[..., Loaded]):
    from dataclasses import replace

    loaded = tiny(name)
    tune(loaded, language="full", projector="frozen", tower="frozen")
    module, batch = AnswerScores(loaded, with_reference=False), mixed_batch(loaded)
    kept = module.features(batch)
    assert len(kept) == 2
    blind = replace(batch, features=kept, pixels={})
    with torch.no_grad():
        assert torch.equal(module(blind).policy, module(batch).policy)


@every_family
def test_images_taken_apart_and_joined_are_the_same(name: str, tiny: Callable[..., Loaded]):
    """Alone or among others of other sizes, an image has the same features."""
    loaded = tiny(name)
    encoder = Encoder(loaded, max_length=400)
    pictures = [picture(0), picture(1, (24, 60)), picture(2, (64, 20))]
    item = encoder.encode(question(images=3), pictures, ["a", "b"])
    family = loaded.family
    with torch.no_grad():
        together = family.features(loaded.model, family.join(item.images)).split(item.image_tokens, dim=1)
        for image, tokens, features in zip(
            family.each(family.join(item.images), item.image_tokens), item.image_tokens, together
        ):
            alone = family.features(loaded.model, image)
            assert alone.shape[1] == tokens
            torch.testing.assert_close(alone, features, atol=1e-5, rtol=1e-5)


@every_family
def test_self_test_finds_that_prompts_can_be_shared(name: str, tiny: Callable[..., Loaded]):
    loaded = tiny(name)
    verdict = may_share(loaded, mixed_batch(loaded))
    assert verdict.shared and verdict.difference is not None and verdict.difference < 1e-5


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl"])
def test_eager_attention_shares_too(name: str, tiny: Callable[..., Loaded]):
    loaded = tiny(name, attention="eager")
    assert may_share(loaded, mixed_batch(loaded)).shared


def test_self_test_falls_back_and_says_why(tiny: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch):
    loaded = tiny("gemma3")
    batch = mixed_batch(loaded)
    assert "only one" in may_share(loaded, batch.only(0)).reason
    # A model whose answers count on in another way: sharing must be found out, not believed.
    monkeypatch.setattr(type(loaded.family), "blocks", lambda self, prompt: torch.full_like(prompt, -1))
    verdict = may_share(loaded, mixed_batch(loaded))
    assert not verdict.shared and "nats a token" in verdict.reason and verdict.difference > 1e-3


def test_self_test_refuses_a_forward_that_is_not_the_model_s(
    tiny: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
):
    loaded = tiny("llava")
    monkeypatch.setattr(
        type(loaded.family), "encoder_output", lambda self, f: type(self).__mro__[1].encoder_output(self, 2 * f)
    )
    with pytest.raises(UserError, match="differs from transformers' own"):
        may_share(loaded, mixed_batch(loaded))


def test_layers_over_the_whole_row_cannot_share(tiny: Callable[..., Loaded]):
    family = tiny("internvl").family
    assert family.why_not_shared(100) is None
    family.text_config.layer_types = ["linear_attention", "full_attention"]
    assert "linear_attention" in (family.why_not_shared(100) or "")
    pali = tiny("paligemma").family
    pali.text_config.sliding_window = 64
    pali.text_config.layer_types = ["sliding_attention", "full_attention"]
    assert pali.why_not_shared(64) is None and "sliding window of 64" in (pali.why_not_shared(65) or "")


def test_table_covers_what_the_tests_cover():
    assert TABLE.keys() == FAMILIES.keys()


def test_unknown_family_is_named():
    from transformers import BertConfig

    with pytest.raises(UserError, match="Unknown vision-language model type 'bert'.*qwen3_vl"):
        family_of(BertConfig())

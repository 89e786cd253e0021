"""Scores of answers: what is asked for beside log-probabilities, references, and batches without images."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from palate.errors import UserError
from tests.tiny_vlm import picture, question
from tests.vlm.batches import mixed_batch, mixed_items
from vlm.encoding import Encoder
from vlm.feature_store import FeatureStore
from vlm.loading import Loaded
from vlm.scoring import AnswerScores
from vlm.tuning import Lora, parameter_groups, tune

SOME = pytest.mark.parametrize("name", ["llava", "smolvlm", "qwen3_vl", "paligemma"])
HOW = {
    "full": {"language": "full", "projector": "full", "tower": "frozen"},
    "all": {"language": "full", "projector": "full", "tower": "full"},
    "lora": {"language": "lora", "projector": "frozen", "tower": "frozen"},
    "povid": {"language": "lora", "projector": "full", "tower": "frozen"},
    "loras": {"language": "lora", "projector": "lora", "tower": "lora"},
    "tower": {"language": "lora", "projector": "full", "tower": "full"},
}
SMALL = Lora(rank=2, alpha=4)


def full_logits(loaded: Loaded, batch, row: int, column: int) -> Tensor:
    """Return the logits (t, V) at one answer's places, from transformers' own forward of that row alone."""
    family = loaded.family
    images = [family.each(batch.pixels, batch.image_tokens)[image] for image in batch.images[row]]
    prompt = batch.prompt[row, : batch.prompt_lengths[row]]
    ids = torch.cat([prompt, batch.answers[row, column][batch.mask[row, column]]])[None]
    pixels = family.join(images) if images else {}
    own = family.own_inputs(ids, torch.arange(ids.shape[1])[None] >= len(prompt), pixels.get("image_grid_thw"))
    return loaded.model(input_ids=ids, **(own | pixels)).logits[0, len(prompt) - 1 : -1]


def shake(module: nn.Module) -> None:
    """Move everything that trains, as an optimiser would."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


@SOME
def test_everything_comes_from_the_same_logits(name: str, tiny: Callable[..., Loaded]):
    """Log-probabilities of other tokens, likeliest tokens and KL, against the full logits of each row."""
    loaded = tiny(name)
    old = copy.deepcopy(loaded.model)
    tune(loaded, language="full", projector="frozen")
    module = AnswerScores(loaded)
    shake(module)
    batch = mixed_batch(loaded)
    targets = torch.randint(
        len(loaded.processor.tokenizer), batch.answers.shape, generator=torch.Generator().manual_seed(2)
    )
    targets[0, 1, 2] = -1
    found = module(batch, targets=targets, with_argmax=True, with_kl=True)
    for row in range(4):
        for column in range(2):
            here = batch.mask[row, column]
            new = full_logits(loaded, batch, row, column).log_softmax(-1)
            then = full_logits(replace(loaded, model=old), batch, row, column).log_softmax(-1)
            at = targets[row, column][here]
            wanted = {
                "policy": new.gather(-1, batch.answers[row, column][here][:, None])[:, 0],
                "target_policy": new.gather(-1, at.clamp(min=0)[:, None])[:, 0].where(at >= 0, 0.0),
                "target_reference": then.gather(-1, at.clamp(min=0)[:, None])[:, 0].where(at >= 0, 0.0),
                "kl": nn.functional.kl_div(new, then, reduction="none", log_target=True).sum(-1),
            }
            for key, value in wanted.items():
                torch.testing.assert_close(getattr(found, key)[row, column][here], value, atol=2e-5, rtol=1e-5)
            assert torch.equal(found.argmax[row, column][here], new.argmax(-1))
    assert found.kl[batch.mask].min() > 1e-4


def test_povid_s_noisy_tokens_come_from_one_forward_without_gradient(tiny: Callable[..., Loaded]):
    """Stage 2: what the model would say of a noised image, given the chosen answer, scored under the clean image."""
    loaded = tiny("llava")
    module = AnswerScores(loaded, with_reference=False)
    batch = mixed_batch(loaded)
    noise = torch.randn(batch.pixels["pixel_values"].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        noisy = module(batch.only(0).with_pixels(lambda pixels: 0.86 * pixels + 0.5 * noise), with_argmax=True)
    targets = torch.full_like(batch.answers, -1)
    targets[:, 0] = noisy.argmax[:, 0]
    found = module(batch, targets=targets)
    clean = full_logits(loaded, batch, 0, 0).log_softmax(-1)
    here = batch.mask[0, 0]
    torch.testing.assert_close(
        found.target_policy[0, 0][here], clean.gather(-1, noisy.argmax[0, 0][here][:, None])[:, 0], atol=1e-5, rtol=0
    )
    assert not found.target_policy[:, 1].any()
    found.target_policy.sum().backward()
    assert loaded.model.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("shared", [True, False])
def test_the_reference_is_the_model_as_it_was_loaded(how: str, shared: bool, tiny: Callable[..., Loaded]):
    """Whatever trains, the reference stays: at first it equals the policy, and after the policy moved, itself."""
    loaded = tiny("llava")
    batch = mixed_batch(loaded)
    tune(loaded, **HOW[how], lora=SMALL)
    module = AnswerScores(loaded, shared=shared).train()
    first = module(batch)
    torch.testing.assert_close(first.policy, first.reference, atol=1e-6, rtol=0)
    assert not first.reference.requires_grad
    shake(module)
    then = module(batch)
    assert torch.equal(then.reference, first.reference)
    assert (then.policy - first.policy).abs().max() > 1e-3
    then.policy.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "internvl", "gemma3", "idefics3", "llava_next"])
@pytest.mark.parametrize("how", ["tower", "loras", "all"])
def test_parts_are_tuned_by_name_in_every_layout(name: str, how: str, tiny: Callable[..., Loaded]):
    """The reference is right also where the projector lies inside the tower (Qwen) or owns bare parameters (Gemma)."""
    loaded = tiny(name)
    batch = mixed_batch(loaded)
    tune(loaded, **HOW[how], lora=SMALL)
    module = AnswerScores(loaded).train()
    first = module(batch)
    torch.testing.assert_close(first.policy, first.reference, atol=1e-6, rtol=0)
    shake(module)
    then = module(batch)
    assert torch.equal(then.reference, first.reference)
    (then.policy * torch.rand(then.policy.shape)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters() if parameter.requires_grad)


def test_a_full_reference_copies_what_trains_and_nothing_else(tiny: Callable[..., Loaded]):
    loaded = tiny("llava")
    tune(loaded, language="frozen", projector="full", tower="frozen")
    module = AnswerScores(loaded)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert sum(p.numel() for p in module.reference.parameters()) == trained > 0
    names = [name for name, _ in module.named_parameters()]
    assert len(names) == len(dict(module.policy.named_parameters())) + 4, "two linear layers with biases"


def test_trained_parameters_are_fp32_and_grouped_by_part(tiny: Callable[..., Loaded]):
    loaded = tiny("llava", dtype="bf16")
    tune(loaded, lora=SMALL)
    groups = parameter_groups(loaded, {"projector": 2e-5, "tower": 1.0, "language": None})
    assert [group.get("lr") for group in groups] == [2e-5, None]
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(trained)
    assert {p.dtype for p in trained} == {torch.float32}
    batch = mixed_batch(loaded)
    with torch.autocast("cpu", torch.bfloat16):
        found = AnswerScores(loaded)(batch)
    assert found.policy.dtype == torch.float32
    torch.testing.assert_close(found.policy, found.reference, atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"language": "frozen", "projector": "frozen"}, "Nothing would train"),
        ({"language": "full", "tower": "lora"}, "in full beside a LoRA"),
        ({"lora": Lora(targets=("q_prj",))}, "No linear layer is called q_prj"),
    ],
)
def test_tunings_that_make_no_sense_are_refused(how, reason: str, tiny: Callable[..., Loaded]):
    with pytest.raises(UserError, match=reason):
        tune(tiny("llava"), **how)


def test_kl_needs_a_live_reference(tiny: Callable[..., Loaded]):
    loaded = tiny("llava")
    batch = mixed_batch(loaded)
    with pytest.raises(TypeError, match="live reference"):
        AnswerScores(loaded)(batch, with_reference=False, with_kl=True)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3"])
def test_a_batch_without_images_still_runs_what_trains(name: str, tiny: Callable[..., Loaded]):
    """Its gradients of tower and projector are there, and zero: ranks with images do not wait for it."""
    loaded = tiny(name)
    encoder = Encoder(loaded, max_length=400)
    text = encoder.collate([mixed_items(encoder)[1]])
    tune(loaded, language="full", projector="full", tower="full")
    scores = AnswerScores(loaded, with_reference=False)(text).policy
    scores.sum().backward()
    for parameter_name, parameter in loaded.model.named_parameters():
        if parameter.requires_grad:
            part = loaded.family.part_of(parameter_name)
            assert parameter.grad is not None and (part == "language" or not parameter.grad.any())
    with torch.no_grad():
        torch.testing.assert_close(scores[0, 0][text.mask[0, 0]], scores_alone(loaded, text), atol=1e-5, rtol=0)


def scores_alone(loaded: Loaded, text) -> Tensor:
    answer = text.answers[0, 0][text.mask[0, 0]]
    return full_logits(loaded, text, 0, 0).log_softmax(-1).gather(-1, answer[:, None])[:, 0]


def test_frozen_towers_rest_where_there_is_no_image(tiny: Callable[..., Loaded]):
    loaded = tiny("llava")
    encoder = Encoder(loaded, max_length=400)
    tune(loaded, language="full", projector="frozen")
    loaded.model.model.vision_tower.register_forward_hook(lambda *_: pytest.fail("the tower ran"))
    AnswerScores(loaded)(encoder.collate([mixed_items(encoder)[1]]))


def test_a_processor_of_another_model_is_named(tiny: Callable[..., Loaded]):
    """The processor expands an image to 8 tokens where the tower makes 9 features."""
    loaded = tiny("llava")
    loaded.processor.num_additional_image_tokens = 0
    batch = Encoder(loaded, max_length=400).collate(
        [Encoder(loaded, max_length=400).encode(question(), [picture(0)], ["one", "two"])]
    )
    with pytest.raises(UserError, match="8 image tokens and the tower made 9"):
        AnswerScores(loaded)(batch)


def test_gradient_checkpointing_changes_nothing(tiny: Callable[..., Loaded]):
    loaded = tiny("llava")
    tune(loaded, lora=SMALL)
    module, batch = AnswerScores(loaded).train(), mixed_batch(loaded)
    shake(module)

    def gradients() -> list[Tensor]:
        module.zero_grad()
        module(batch).policy.sum().backward()
        return [p.grad.clone() for p in module.parameters() if p.requires_grad]

    plain = gradients()
    loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(gradients(), plain):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("quantise", ["4bit", "8bit"])
def test_lora_on_a_quantised_base_gets_gradients(quantise: str, tiny: Callable[..., Loaded]):
    pytest.importorskip("bitsandbytes")
    from vlm.self_test import may_share

    try:
        loaded = tiny("llava", quantise=quantise)
    except (RuntimeError, NotImplementedError) as error:  # bitsandbytes without this kind on this machine
        pytest.skip(str(error))
    kinds = {type(module).__name__ for module in loaded.model.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}
    tune(loaded, lora=SMALL)
    batch = mixed_batch(loaded)
    loaded.model.train()
    verdict = may_share(loaded, batch)
    assert verdict.difference is not None
    module = AnswerScores(loaded, shared=verdict.shared).train()
    found = module(batch)
    assert found.policy.isfinite().all() and torch.equal(found.policy.detach(), found.reference)
    (found.policy - found.reference).sum().backward()
    by_kind = {"lora_B": 0.0, "projector": 0.0}
    for name, parameter in module.named_parameters():
        for kind in by_kind:
            if kind in name and parameter.grad is not None:
                by_kind[kind] += float(parameter.grad.abs().sum())
    assert all(total > 0 for total in by_kind.values()), by_kind
    with pytest.raises(UserError, match="quantised language model cannot train in full"):
        tune(loaded, language="full")


@pytest.mark.launch
def test_ranks_with_and_without_images_do_not_wait_for_each_other(tiny_folder: Callable[[str], Path]):
    """Rank 0 has images and rank 1 none, the next step the other way round; tower and projector train. DDP, then FSDP2."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__)
    made = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}",
         str(here.parent / "run_mixed.py"), str(tiny_folder("llava"))],
        env={**os.environ, "PYTHONPATH": str(here.parents[2])}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert made.stdout.count("finished ddp") == made.stdout.count("finished fsdp2") == 2, made.stderr[-2000:]


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen3_vl"])
def test_a_store_sees_each_image_once_in_all_runs(name: str, tiny: Callable[..., Loaded], tmp_path: Path):
    """The second model finds the first one's features, and other weights, precision or pixels do not."""
    loaded = tiny(name)
    tune(loaded, language="full", projector="frozen")
    batch = mixed_batch(loaded)
    calls: list[int] = []
    tower = loaded.model.get_submodule(loaded.family.parts["tower"][0])
    tower.register_forward_hook(lambda *_: calls.append(1))
    plain = AnswerScores(loaded)(batch)
    calls.clear()
    for expected in (2, 0):
        module = AnswerScores(loaded, store=FeatureStore(tmp_path, loaded))
        found = module(batch)
        torch.testing.assert_close(found.policy, plain.policy, atol=1e-5, rtol=0)
        assert len(calls) == expected
        calls.clear()
    module(batch.with_pixels(lambda pixels: 0.5 * pixels))
    assert len(calls) == 1, "changed pixels are nobody's features"
    with torch.autocast("cpu", torch.bfloat16):
        module(batch)
    assert len(calls) == 3
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(b"torn")
    torch.testing.assert_close(module(batch).policy, found.policy, atol=1e-5, rtol=0)
    with torch.no_grad():
        next(tower.parameters()).add_(0.1)
    assert FeatureStore(tmp_path, loaded).folder != module.store.folder

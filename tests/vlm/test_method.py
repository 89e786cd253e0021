"""What the method trains on is what the formulas say, by other ways: TRL's own code, transformers' own forwards, hands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palate.objectives import Term, token_weighted_score
from palate.records import Media
from tests.tiny_vlm import picture
from tests.vlm.runs import config_of, noise_pairs
from vlm.corruption import Corruption, diffused
from vlm.data import PairBatch, PairExamples, PairList
from vlm.encoding import Encoder
from vlm.loading import Loaded
from vlm.method import AnswerMethod
from vlm.objective import Wanted, build_loss
from vlm.recipes import Recipe, resolve
from vlm.scoring import AnswerScores
from vlm.self_test import plain_logps
from vlm.tuning import Lora, tune

HAVE = {"score_gap": True, "batch_stats": True, "ranking": True}
TUNING = {
    "lora": {"language": "lora", "projector": "full"},
    "full": {"language": "full", "projector": "full", "tower": "full"},
}
Made = tuple[AnswerMethod, PairBatch, PairExamples]


def method_of(
    loaded: Loaded, settings: dict[str, Any], *, pairs: list | None = None, tuning: str = "lora", held_out: bool = False
) -> Made:
    """Return the method of these settings on the first four pairs, moved away from its reference, and its batch."""
    pairs = noise_pairs(4) if pairs is None else pairs
    config = config_of(settings)
    wanted = config.objective
    recipe = resolve(
        wanted.recipe, wanted.fidelity, terms=wanted.terms, corruption=wanted.corruption, mixtures=wanted.mixtures
    )
    loss = build_loss(config, recipe, HAVE)
    encoder = Encoder(loaded, max_length=200)
    apart = any(pair.rejected_images is not None for pair in pairs)
    corruption = recipe.corruption if Wanted.by(loss, recipe).corruption else None
    examples = PairExamples(PairList(pairs), encoder, seed=0, corruption=corruption, apart=apart)
    tune(loaded, lora=Lora(4, 8.0), **TUNING[tuning])  # type: ignore[arg-type]
    method = AnswerMethod(
        loaded,
        encoder,
        loss,
        recipe,
        AnswerScores(loaded, with_reference="reference" in loss.needs),
        rates={},
        changed_weight=wanted.changed_weight,
        held_out=PairExamples(PairList(pairs), encoder, seed=0, apart=apart) if held_out else None,
        eval_batch=3,
    )
    shake(loaded.model)
    return method, method.collate([examples[n, 0] for n in range(len(pairs))]), examples


def shake(module: nn.Module) -> None:
    """Move everything that trains, as an optimiser would."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))


def step(method: AnswerMethod, batch: PairBatch) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Take one step without an optimiser; return its report and the gradients by name."""
    module = method.module()
    report = method.step(module, batch, lambda loss, last=True: loss.backward(), at=0)
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return {name: float(value) for name, value in report.items()}, gradients


def by_hand(loaded: Loaded, batch: Any) -> Tensor:
    """Return log-probabilities (B, A, T) of a batch by transformers' own forwards, one answer at a time."""
    return torch.stack([plain_logps(loaded, batch, row) for row in range(len(batch.prompt))])


def trl_loss(loaded: Loaded, reference: Loaded, batch: PairBatch, beta: float) -> Tensor:
    """Return the loss that TRL's DPOTrainer computes of the batch, each answer in a row of its own."""
    trl = pytest.importorskip("trl")
    answers, family = batch.answers, loaded.family
    rows, completion, shown = [], [], []
    for side in (0, 1):
        for row in range(len(batch)):
            prompt = answers.prompt[row, : answers.prompt_lengths[row]]
            tokens = answers.answers[row, side, : answers.answer_lengths[row, side]]
            rows.append(torch.cat([prompt, tokens]))
            completion.append(torch.cat([torch.zeros_like(prompt), torch.ones_like(tokens)]))
            shown += [family.each(answers.pixels, answers.image_tokens)[image] for image in answers.images[row]]
    pad = lambda these: nn.utils.rnn.pad_sequence(these, batch_first=True)
    inputs = {
        "input_ids": pad(rows),
        "attention_mask": pad([torch.ones_like(row) for row in rows]),
        "completion_mask": pad(completion),
        **family.join(shown),
    }

    def forward(model: Any, *, labels: Tensor, fused_lm_head: bool, **kwargs: Any) -> SimpleNamespace:
        logits = model(**kwargs).logits[:, :-1].log_softmax(-1)
        there = labels[:, 1:] != -100
        found = logits.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0] * there
        return SimpleNamespace(log_probs=found, entropy=found * 0, mean_logits=found * 0, is_top1=there)

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x),
        model=loaded.model.train(),
        ref_model=lambda **kwargs: forward(reference.model, **kwargs),
        args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    return trl.DPOTrainer._compute_loss(trainer, lambda **k: forward(loaded.model, **k), inputs, return_outputs=False)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_loss_and_gradients_are_trls(name: str, tuning: str, tiny: Callable[..., Loaded]):
    """On the same four pairs, with and without images, several answers a prompt: 1e-6 in the loss, 1e-4 in gradients."""
    loaded, reference = tiny(name), tiny(name)
    method, batch, _ = method_of(loaded, {"objective.recipe": "dpo"}, tuning=tuning)
    report, gradients = step(method, batch)
    theirs = trl_loss(loaded, reference, batch, beta=0.1)
    theirs.backward()
    assert report["loss"] == pytest.approx(theirs.item(), abs=1e-6)
    assert abs(report["loss"] - 0.6931) > 1e-3, "the policy should differ from its reference here"
    assert len(gradients) > 5
    for parameter_name, parameter in method.module().named_parameters():
        if parameter.grad is not None:
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(gradients[parameter_name], parameter.grad, rtol=1e-3, atol=1e-4 * scale + 1e-7)


@pytest.mark.parametrize("fidelity", ["paper", "code"])
def test_povid_stage_2_scores_the_noisy_images_tokens(fidelity: str, tiny: Callable[..., Loaded]):
    """Noise step 500 on the normalised pixels, the policy's argmax after each prefix of the chosen answer, scored given the
    clean image under policy and reference; without an image nothing is said. All by transformers' own forwards.
    """
    loaded, reference = tiny("llava"), tiny("llava")
    method, batch, examples = method_of(loaded, {"objective.recipe": "povid_stage2", "objective.fidelity": fidelity})
    calls = []
    handle = method.module().register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    report, _ = step(method, batch)
    handle.remove()
    assert calls == [False, True], "the noisy pass has no gradient, and there is one more and no other"

    clean, worse = batch.answers, batch.corrupted
    assert worse is not None
    noisy = _likeliest(loaded, worse)
    tokens = torch.where(batch.has_images[:, None], noisy, clean.answers[:, 0, : noisy.shape[1]])
    assert (tokens != clean.answers[:, 0, : noisy.shape[1]])[
        worse.mask[:, 0] & batch.has_images[:, None]
    ].float().mean() > 0.5
    with torch.no_grad():
        text = [by_hand(model, clean).sum(-1) for model in (loaded, reference)]
        extra = [_at(model, clean, tokens) for model in (loaded, reference)]
    r_w, r_l = (text[0] - text[1]).unbind(1)
    r_noisy = extra[0] - extra[1]
    torch.testing.assert_close(r_noisy[2], r_w[2], msg="the third pair has no image")
    if fidelity == "code":
        expected = -(F.logsigmoid(0.1 * (r_w - r_noisy)) + F.logsigmoid(0.1 * (r_w - r_l))) / 2
    else:
        expected = -F.logsigmoid(0.1 * r_w - 0.05 * (r_l + r_noisy))
    assert report["loss"] == pytest.approx(float(expected.mean()), abs=2e-6)

    chosen = examples[0, 0].chosen
    seen = diffused(chosen.images[0]["pixel_values"], _noise(examples, chosen.images[0]["pixel_values"]), 500)
    torch.testing.assert_close(worse.pixels["pixel_values"][:1], seen)


def _noise(examples: PairExamples, values: Tensor) -> Tensor:
    from palate.randomness import generator

    pair, _ = examples.pairs.read(0)
    return torch.randn(values.shape, generator=generator(0, f"{pair.id}/0", 0, "noise image"))


@torch.no_grad()
def _likeliest(loaded: Loaded, batch: Any) -> Tensor:
    """Return the argmax (B, T) at the places of the first answers, by transformers' own forwards."""
    found = torch.zeros_like(batch.answers[:, 0])
    for row in range(len(batch.prompt)):
        found[row, : batch.answer_lengths[row, 0]] = _logits(loaded, batch, row).argmax(-1)
    return found


def _at(loaded: Loaded, batch: Any, tokens: Tensor) -> Tensor:
    """Return the summed log-probabilities (B,) of other tokens at the places of the first answers."""
    sums = []
    for row in range(len(batch.prompt)):
        logps = _logits(loaded, batch, row).log_softmax(-1)
        sums.append(logps.gather(-1, tokens[row, : len(logps), None]).sum())
    return torch.stack(sums)


def _logits(loaded: Loaded, batch: Any, row: int) -> Tensor:
    images = [loaded.family.each(batch.pixels, batch.image_tokens)[image] for image in batch.images[row]]
    prompt = batch.prompt[row, : batch.prompt_lengths[row]]
    ids = torch.cat([prompt, batch.answers[row, 0, : batch.answer_lengths[row, 0]]])[None]
    pixels = loaded.family.join(images) if images else {}
    return loaded.model(input_ids=ids, **pixels).logits[0, len(prompt) - 1 : -1]


def test_mdpo_sees_one_crop_for_policy_and_reference(tiny: Callable[..., Loaded]):
    loaded, reference = tiny("llava"), tiny("llava")
    method, batch, _ = method_of(loaded, {"objective.recipe": "mdpo"})
    report, _ = step(method, batch)
    assert batch.corrupted is not None and batch.corrupted.keys != batch.answers.keys
    with torch.no_grad():
        clean = by_hand(loaded, batch.answers).sum(-1) - by_hand(reference, batch.answers).sum(-1)
        cropped = (by_hand(loaded, batch.corrupted) - by_hand(reference, batch.corrupted)).sum((1, 2))
    r_w, r_l = clean.unbind(1)
    expected = [-F.logsigmoid(0.1 * d).mean() for d in (r_w - r_l, r_w - cropped, r_w)]
    names = ("loss/dpo(chosen,rejected)", "loss/dpo(chosen,corrupted)", "loss/anchor")
    assert [report[name] for name in names] == pytest.approx([float(e) for e in expected], abs=2e-6)
    assert report["loss"] == pytest.approx(float(sum(expected)), abs=5e-6)
    assert float((r_w - cropped)[2]) == pytest.approx(0, abs=1e-4), "a pair without an image says nothing here"


def test_corrections_weigh_five_times_in_rlhf_v(tiny: Callable[..., Loaded]):
    """The words that differ are told by a diff of tokens; both answers' scores are weighted means."""
    from vlm.logps import changed_tokens

    loaded, reference = tiny("llava"), tiny("llava")
    method, batch, _ = method_of(loaded, {"objective.recipe": "rlhf_v"})
    report, _ = step(method, batch)
    answers = batch.answers
    changed = changed_tokens(answers.answers, answers.answer_lengths)
    scores = []
    for model in (loaded, reference):
        with torch.no_grad():
            logps = by_hand(model, answers)
        scores.append([token_weighted_score(logps[:, s], answers.mask[:, s], changed[:, s], 5.0) for s in (0, 1)])
    (w, el), (qw, ql) = scores
    assert report["loss"] == pytest.approx(float(-F.logsigmoid(0.5 * ((w - qw) - (el - ql))).mean()), abs=2e-6)


def test_kto_estimates_its_divergence_from_answers_of_other_prompts(tiny: Callable[..., Loaded]):
    """z = max(0, mean of r over (prompt k, chosen answer k - 1)); the losses 1 - S(beta (r - z)) and 1 - S(beta (z - r))."""
    loaded, reference = tiny("llava"), tiny("llava")
    method, batch, _ = method_of(loaded, {"objective.recipe": "custom", "objective.terms": [{"objective": "kto"}]})
    report, _ = step(method, batch)
    answers = batch.answers
    rolled = replace(answers, answers=answers.answers.roll(1, 0), answer_lengths=answers.answer_lengths.roll(1, 0))
    with torch.no_grad():
        r_w, r_l = (by_hand(loaded, answers) - by_hand(reference, answers)).sum(-1).unbind(1)
        z = (by_hand(loaded, rolled) - by_hand(reference, rolled)).sum(-1)[:, 0].mean().clamp(min=0)
    expected = (1 - torch.sigmoid(0.1 * (r_w - z)) + 1 - torch.sigmoid(0.1 * (z - r_l))) / 2
    assert report["loss"] == pytest.approx(float(expected.mean()), abs=2e-6)


def test_tdpo_reads_the_divergence_at_every_token(tiny: Callable[..., Loaded]):
    method, batch, _ = method_of(
        tiny("llava"), {"objective.recipe": "custom", "objective.terms": [{"objective": "tdpo"}]}
    )
    slots, _ = method.slots(method.module(), batch)
    assert (slots["chosen"].kl > 0).all() and (slots["rejected"].kl > 0).all()  # type: ignore[operator]
    r_w, r_l = (slots[side].policy - slots[side].reference for side in ("chosen", "rejected"))  # type: ignore[operator]
    excess = 0.5 * (slots["rejected"].kl - slots["chosen"].kl)  # type: ignore[operator]
    report, _ = step(method, batch)
    expected = -F.logsigmoid(0.1 * (r_w - r_l - excess)).mean().item()
    assert report["loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("recipe", ["dpo", "mdpo", "povid_stage2"])
def test_answers_with_images_of_their_own_lie_apart(recipe: str, tiny: Callable[..., Loaded]):
    """The same image twice, or once and shared, is the same loss; another image for the rejected answer is another."""
    shared = noise_pairs(3)
    own = [replace(pair, rejected_images=pair.images) for pair in shared]
    other = [replace(pair, rejected_images=tuple(Media.image(picture(50)) for _ in pair.images)) for pair in shared]
    losses = []
    for pairs in (shared, own, other):
        if recipe != "dpo":  # the draws are keyed by the pair's id, which names the images
            pairs = [_Fixed(pair, f"pair {n}") for n, pair in enumerate(pairs)]  # type: ignore[misc]
        method, batch, _ = method_of(tiny("llava"), {"objective.recipe": recipe}, pairs=pairs)
        losses.append(step(method, batch)[0]["loss"])
        assert batch.apart == (pairs is not shared and len(losses) > 1)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and abs(losses[2] - losses[0]) > 1e-5


class _Fixed:
    """A pair under another id."""

    def __init__(self, pair: Any, name: str) -> None:
        self.pair, self.id = pair, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pair, name)


EVERY = ["dpo", "hinge", "ipo", "exo_pair", "nca_pair", "bco", "sppo_hard", "apo_zero", "aot", "discopop", "ln_dpo", "odpo",
         "dpop", "dpo_shift", "simpo", "alphapo", "cpo", "orpo", "asft", "sft", "lambda_rank", "plackett_luce"]  # fmt: skip


def test_every_objective_for_language_trains(tiny: Callable[..., Loaded]):
    method, batch, _ = method_of(tiny("llava"), {"objective.recipe": "dpo"}, pairs=noise_pairs(2))
    config = config_of({})
    for name in EVERY:
        method.loss = build_loss(config, Recipe((Term(name),), ""), HAVE)
        report, gradients = step(method, batch)
        assert all(bool(g.isfinite().all()) for g in gradients.values()), name
        assert max(float(g.abs().max()) for g in gradients.values()) > 0, name
        assert {"rewards/chosen", "rewards/rejected", "margin", "accuracy", "loss", "chosen_nll"} <= set(report), name


def test_held_out_measures_do_not_depend_on_the_batch(tiny: Callable[..., Loaded], tmp_path):
    """accuracy and margin by hand from the scores; the image's worth is 0 for a model that does not look."""
    method, batch, _ = method_of(tiny("llava"), {"objective.recipe": "dpo"}, held_out=True)
    report = method.evaluate(method.module().eval(), tmp_path, 0)
    slots, lengths = method.slots(method.module(), batch)
    r_w, r_l = (slots[side].policy - slots[side].reference for side in ("chosen", "rejected"))  # type: ignore[operator]
    assert report["accuracy"] == pytest.approx(float((r_w > r_l).float().mean()))
    assert report["margin"] == pytest.approx(0.1 * float((r_w - r_l).mean()), abs=1e-6)
    assert report["chosen_nll"] == pytest.approx(-float((slots["chosen"].policy / lengths[:, 0]).mean()), abs=1e-5)
    assert report["chosen_fall"] == pytest.approx(-float((r_w / lengths[:, 0]).mean()), abs=1e-6)
    assert report["pairs"] == 4 and report["image_reliance"] != 0

    blank = batch.answers.only(0).with_pixels(torch.zeros_like)
    with torch.no_grad():
        seen = by_hand(method.loaded, batch.answers.only(0)).sum((1, 2)) - by_hand(method.loaded, blank).sum((1, 2))
    worth = (seen / lengths[:, 0])[batch.has_images].mean()
    assert report["image_reliance"] == pytest.approx(float(worth), abs=1e-5)

    blind = method.loaded.model.model.multi_modal_projector
    with torch.no_grad():
        for parameter in blind.parameters():
            parameter.zero_()
    assert method.evaluate(method.module(), tmp_path, 1)["image_reliance"] == pytest.approx(0, abs=1e-6)


def test_each_part_has_its_learning_rate(tiny: Callable[..., Loaded]):
    method, _, _ = method_of(tiny("llava"), {})
    method.rates = {"language": 1e-7, "projector": 2e-5, "tower": None}
    groups = {group["lr"]: len(group["params"]) for group in method.parameter_groups()}
    assert set(groups) == {1e-7, 2e-5} and groups[2e-5] == 4
    assert sum(groups.values()) == sum(p.requires_grad for p in method.module().parameters())


def test_a_corruption_by_visit_and_not_by_batch(tiny: Callable[..., Loaded]):
    _, _, examples = method_of(tiny("llava"), {"objective.recipe": "mdpo"})
    first, again, later = (examples[0, visit].corrupted for visit in (0, 0, 1))
    assert first is not None and again is not None and later is not None
    assert first.keys == again.keys != later.keys and len(first.answers) == 1
    examples.draws = 2
    assert examples[0, 2].corrupted.keys == first.keys and examples[0, 3].corrupted.keys == later.keys  # type: ignore[union-attr]
    assert examples[2, 0].corrupted.images == ()  # type: ignore[union-attr]
    assert Corruption("blank").is_random is False and Corruption("noise").is_random

"""Preference training of vision-language models: POVID, BPO, mDPO, RLHF-V, DPO, SimPO and every other objective for text.

The method turns a pair into scores of slots; a recipe (`vlm.recipes`) says which slots there are and what is optimised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor, nn
from torch.nn.functional import pad

from palate.objectives import Loss, ResponseScores
from palate.training.method import Backward, Report, is_sharded
from palate.training.objective import entanglement, implicit_accuracy, step_loss
from vlm.data import Example, PairBatch, PairExamples, collate
from vlm.encoding import Encoder
from vlm.loading import Loaded
from vlm.logps import changed_tokens, reduce
from vlm.objective import WEIGHED, Wanted
from vlm.recipes import SLOTS, Recipe
from vlm.reference import has_adapters
from vlm.saving import save_full, save_lora
from vlm.scoring import AnswerScores, TokenScores
from vlm.tuning import parameter_groups

Measure = Callable[[Loaded, Path, int], Report]
"""(model, folder, step) -> further held-out measures; called on every process, unless the model is sharded."""


class AnswerMethod:
    """Trains a vision-language model on pairs of answers, by any `Loss` over the slots of a recipe."""

    def __init__(
        self,
        loaded: Loaded,
        encoder: Encoder,
        loss: Loss,
        recipe: Recipe,
        scores: AnswerScores,
        *,
        rates: Mapping[str, float | None],
        changed_weight: float = 5.0,
        held_out: PairExamples | None = None,
        eval_batch: int = 4,
        entanglement_every: int = 0,
        measures: Sequence[Measure] = (),
    ) -> None:
        """Take the model after `vlm.tuning.tune`, and the scores made of it.

        rates: learning rate of each part. measures: what else an evaluation does, such as a benchmark.
        """
        self.loaded, self.encoder, self.loss, self.recipe = loaded, encoder, loss, recipe
        self.rates, self.changed_weight = rates, changed_weight
        self.held_out, self.eval_batch, self.measures = held_out, eval_batch, measures
        self.entanglement_every = entanglement_every
        self.wanted = Wanted.by(loss, recipe)
        self._module = scores
        self._held_reference: list[Tensor | None] | None = None

    # --- the seam ----------------------------------------------------------------------------------------------------

    def module(self) -> nn.Module:
        return self._module

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.loaded, self.rates)

    def collate(self, items: Sequence[Example]) -> PairBatch:
        return collate(items, self.encoder)

    def step(self, module: nn.Module, batch: PairBatch, backward: Backward, *, at: int) -> Mapping[str, Tensor]:
        slots, lengths = self.slots(module, batch)
        loss, report = step_loss(
            self.loss, slots, items=len(batch), at=at, p_chosen=batch.p_chosen, score_gap=batch.score_gap
        )
        report |= entanglement(module.parameters(), slots, every=self.entanglement_every, at=at)
        backward(loss.mean())
        with torch.no_grad():
            return {
                **report,
                "loss": loss.detach().mean(),
                **_fall(slots["chosen"], lengths[:, 0]),
                "length/chosen": lengths[:, 0].float().mean(),
                "length/rejected": lengths[:, 1].float().mean(),
                "cut_answers": 1 - batch.answers.complete.float().mean(),
            }

    def evaluate(self, module: nn.Module, folder: Path, step: int) -> Report:
        stay_awake(module)
        report: Report = {}
        if self.held_out is not None and len(self.held_out):
            report |= self._held_out_measures(module, step)
        for measure in () if is_sharded(module) else self.measures:
            report |= measure(self.loaded, folder / f"step-{step:08d}", step)
        return report

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss.load_state_dict(state["loss"])

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        (save_lora if has_adapters(self.loaded.model) else save_full)(self.loaded, folder, weights)

    # --- slots -------------------------------------------------------------------------------------------------------

    def slots(self, module: nn.Module, batch: PairBatch) -> tuple[dict[str, ResponseScores], Tensor]:
        """Return the scores of every slot that the loss wants, each (B,), and the answers' lengths, (B, 2).

        The image's corruption, and the tokens that come of it, are the same for policy and reference.
        """
        live = self._module.reference is not None
        worse = self._worse(module, batch, live)
        targets = self._noisy_tokens(batch, worse) if self.wanted.noisy else None
        found: TokenScores = module(batch.answers, targets=targets, with_reference=live, with_kl=self.wanted.kl)
        assert found.policy is not None
        mask, lengths = batch.by_pair(found.mask), batch.by_pair(batch.answers.answer_lengths[..., None])[..., 0]
        policy = batch.by_pair(found.policy)
        reference = batch.known if found.reference is None else batch.by_pair(found.reference)
        kl = None if found.kl is None else reduce(batch.by_pair(found.kl), mask)

        def pair(how: Any, **more: Any) -> Iterator[ResponseScores]:
            scores = reduce(policy, mask, how, **more)
            known = None if reference is None else reduce(reference, mask, how, **more)
            for side in (0, 1):
                yield ResponseScores(
                    scores[:, side],
                    None if known is None else known[:, side],
                    lengths[:, side],
                    None if kl is None else kl[:, side],
                )

        slots = dict(zip(SLOTS[:2], pair("sum"), strict=True))
        if self.wanted.weighed:
            tokens = batch.by_pair(batch.answers.answers)
            weighed = pair("weighted", changed=changed_tokens(tokens, lengths), gamma=self.changed_weight)
            slots |= dict(zip((name + WEIGHED for name in SLOTS[:2]), weighed, strict=True))
        if self.wanted.noisy:
            slots["noisy"] = _sums(batch, found.target_policy, found.target_reference, lengths[:, 0])
        if self.wanted.corrupted:
            assert worse is not None and worse.policy is not None and batch.corrupted is not None
            known = batch.known_corrupted if worse.reference is None else worse.reference
            slots["corrupted"] = ResponseScores(
                worse.policy.sum((1, 2)),
                None if known is None else known.sum((1, 2)),
                batch.corrupted.answer_lengths[:, 0],
            )
        if self.wanted.mismatched:
            slots["mismatched"] = self._mismatched(module, batch, live)
        for name, weights in self.recipe.mixtures.items():
            if all(slot in slots for slot in weights):
                slots[name] = _mixed(slots, weights)
        return slots, lengths

    def _worse(self, module: nn.Module, batch: PairBatch, live: bool) -> TokenScores | None:
        """Return the scores of the chosen answers given the corrupted images, with gradients where they are trained on."""
        if not self.wanted.corruption:
            return None
        assert batch.corrupted is not None
        with torch.set_grad_enabled(self.wanted.corrupted and torch.is_grad_enabled()):
            scores: TokenScores = module(
                batch.corrupted,
                with_reference=live and self.wanted.corrupted,
                with_argmax=self.wanted.noisy,
            )
        return scores

    def _noisy_tokens(self, batch: PairBatch, worse: TokenScores | None) -> Tensor:
        """Return the tokens to score at the places of `batch.answers`: the argmax at those of the chosen answers, else -1.

        Without an image there is nothing to corrupt: then they are the chosen answer's own, and the term says nothing.
        """
        assert worse is not None and worse.argmax is not None
        own = batch.answers.answers[: len(batch), :1]
        room = own.shape[-1] - worse.argmax.shape[-1]
        noisy = torch.where(batch.has_images[:, None, None], pad(worse.argmax, (0, room)), own)
        if batch.apart:
            return torch.cat([noisy, torch.full_like(noisy, -1)])
        return torch.cat([noisy, torch.full_like(noisy, -1)], dim=1)

    @torch.no_grad()
    def _mismatched(self, module: nn.Module, batch: PairBatch, live: bool) -> ResponseScores:
        """Return the scores of each chosen answer after the next prompt, for KTO's estimate of the divergence."""
        answers = batch.answers.only(0)
        rolled = replace(
            answers,
            answers=answers.answers.roll(1, 0),
            answer_lengths=answers.answer_lengths.roll(1, 0),
            complete=answers.complete.roll(1, 0),
        )
        scores: TokenScores = module(rolled, with_reference=live)
        assert scores.policy is not None
        return ResponseScores(
            scores.policy.sum((1, 2)), None if scores.reference is None else scores.reference.sum((1, 2))
        )

    # --- held-out measures -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _held_out_measures(self, module: nn.Module, step: int) -> Report:
        """Return accuracy, margin and what the images are worth, over the held-out pairs.

        The margin is beta D of the first term, or with no reference beta times the difference of log-probabilities per
        token. `image_reliance` is log-probability of the chosen answer given its image, minus that given a blank one, per
        token; NaN where no pair has an image.
        """
        assert self.held_out is not None
        if self._held_reference is None:
            self._held_reference = []
        known = self._held_reference
        fresh, rows = not known, []
        for number, batch in enumerate(self._held_out_batches()):
            found: TokenScores = module(batch.answers, with_reference=fresh and self._module.reference is not None)
            assert found.policy is not None
            lengths = batch.by_pair(found.mask).sum(-1)
            policy = batch.by_pair(found.policy).sum(-1)
            if fresh:
                live = None if found.reference is None else batch.by_pair(found.reference).sum(-1)
                known.append(live if batch.known is None else batch.known.sum(-1))
            reference = known[number]
            scores = policy / lengths if reference is None else policy - reference
            fall = torch.full_like(policy[:, 0], torch.nan) if reference is None else -scores[:, 0] / lengths[:, 0]
            rows.append(
                torch.stack(
                    [
                        scores[:, 0] - scores[:, 1],
                        -policy[:, 0] / lengths[:, 0],
                        fall,
                        self._worth(module, batch, policy[:, 0]) / lengths[:, 0],
                        batch.p_chosen,
                    ],
                    dim=1,
                )
            )
        # Ranks hold equal runs; what pads the last run is cut off.
        everything = gather(torch.cat(rows))[: len(self.held_out)]
        margin, nll, fall, worth, p_chosen = everything.unbind(1)
        return {
            "accuracy": implicit_accuracy(margin, p_chosen),
            "margin": self.loss.beta(self.loss.terms[0], step) * float(margin.mean()),
            "chosen_nll": float(nll.mean()),
            "chosen_fall": float(fall.mean()),
            "image_reliance": float(worth.nanmean()),
            "pairs": float(len(p_chosen)),
        }

    def _worth(self, module: nn.Module, batch: PairBatch, given_image: Tensor) -> Tensor:
        """Return how much likelier each chosen answer is with its image than with a blank one, (B,), nats."""
        blank = batch.answers.with_pixels(torch.zeros_like)
        if not batch.apart:
            blank = blank.only(0)
        scores: TokenScores = module(blank, with_reference=False)
        assert scores.policy is not None
        worth = given_image - scores.policy[: len(batch), 0].sum(-1)
        return worth.masked_fill(~batch.has_images, torch.nan)

    def _held_out_batches(self) -> Iterator[PairBatch]:
        """Yield this process's share of the held-out pairs; all processes get equally many batches."""
        assert self.held_out is not None
        state = PartialState()
        share = math.ceil(len(self.held_out) / state.num_processes)
        places = [*range(len(self.held_out)), *[0] * (share * state.num_processes - len(self.held_out))]
        mine = places[state.process_index * share : (state.process_index + 1) * share]
        for begin in range(0, share, self.eval_batch):
            examples = [self.held_out[index, "held-out"] for index in mine[begin : begin + self.eval_batch]]
            yield self.collate(examples).to(state.device)


def stay_awake(module: nn.Module) -> None:
    """Keep 4-bit layers in training mode, which changes nothing that they compute.

    On a CPU bitsandbytes packs them for good at the first forward in evaluation mode, and packed ones pass no gradients.
    """
    for part in module.modules():
        if type(part).__name__ == "Linear4bit":
            part.training = True


def _sums(batch: PairBatch, policy: Tensor | None, reference: Tensor | None, lengths: Tensor) -> ResponseScores:
    """Return the scores of the tokens scored at the chosen answers' places."""
    assert policy is not None
    known = None if reference is None else batch.by_pair(reference)[:, 0].sum(-1)
    return ResponseScores(batch.by_pair(policy)[:, 0].sum(-1), known, lengths)


def _mixed(slots: Mapping[str, ResponseScores], weights: Mapping[str, float]) -> ResponseScores:
    """Return the weighted sum of slots."""
    known = [weight * q for name, weight in weights.items() if (q := slots[name].reference) is not None]
    policy = torch.stack([weight * slots[name].policy for name, weight in weights.items()])
    return ResponseScores(policy.sum(0), torch.stack(known).sum(0) if known else None)


def _fall(chosen: ResponseScores, lengths: Tensor) -> dict[str, Tensor]:
    """Return the chosen answers' negative log-probability per token, and how far it rose above the reference's."""
    policy = chosen.policy.detach() / lengths
    known = torch.full_like(policy, torch.nan) if chosen.reference is None else chosen.reference / lengths
    return {"chosen_nll": -policy.mean(), "chosen_fall": (known - policy).mean()}

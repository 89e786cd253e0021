"""Preference training of diffusion models: Diffusion-DPO, MaPO, DCPO, SFT and every other pairwise objective on pairs,
Diffusion-KTO on ratings, RankDPO on rankings.

The method turns the images of a record into diffusion scores at a shared timestep and noise; the objective is a function
of them. DCPO (2502.06023) is Diffusion-DPO in which each branch sees its own caption, so it is a matter of data here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from diffusers.utils import make_image_grid
from torch import Tensor, nn

from palate.errors import UserError
from palate.objectives import Loss, by_timestep
from palate.training.method import Backward, Report, is_sharded
from palate.training.objective import entanglement, step_loss
from palate.training.reference import Reference
from palate.training.settings import Precision
from t2i.batches import Batch, Example, collate
from t2i.buckets import BucketedExamples
from t2i.cache import EncodingCache, autocast, encoders_of
from t2i.data import Examples
from t2i.diffusion_score import DenoisingErrors, Errors
from t2i.families.base import Conditioning, Family
from t2i.filling import complete_cache
from t2i.held_out import HeldOut
from t2i.kinds import PAIRS, Kind
from t2i.reference_cache import ReferenceErrors, complete_references
from t2i.sample import generate
from t2i.settings import ModelConfig, SampleConfig
from t2i.tuning import tune


class _Inputs(NamedTuple):
    """What the denoiser is asked of the M images of a batch: noisy and target `(M, C, h, w)`, t `(M,)`."""

    noisy: Tensor
    t: Tensor
    conditioning: Conditioning
    target: Tensor


class PreferenceMethod:
    """Trains a family's denoiser on records of one kind, by any `Loss` that suits the kind."""

    def __init__(
        self,
        family: Family,
        loss: Loss,
        model: ModelConfig,
        precision: Precision,
        *,
        kind: Kind = PAIRS,
        seed: int = 0,
        held_out: Examples | BucketedExamples | None = None,
        draws: int = 4,
        eval_batch: int = 16,
        sample: SampleConfig | None = None,
        entanglement_every: int = 0,
        cache: EncodingCache | None = None,
        references: ReferenceErrors | None = None,
    ) -> None:
        self.family, self.loss, self.precision, self.kind = family, loss, precision, kind
        self.lora, self.split_pair = model.tuning == "lora", model.split_pair
        if self.split_pair and model.lora_dropout:
            raise UserError(
                "--model.split_pair computes each error twice, and dropout would change it: set lora_dropout 0."
            )
        if self.split_pair and entanglement_every:
            raise UserError(
                "--objective.entanglement_every needs both sides' activations: leave --model.split_pair out."
            )
        if entanglement_every and kind is not PAIRS:
            raise UserError(
                f"--objective.entanglement_every compares the sides of pairs; leave it out for {kind.name}."
            )
        self.entanglement_every, self.cache, self.references = entanglement_every, cache, references
        self.draws, self.sample = draws, sample
        self.held_out: HeldOut | None = None
        if held_out is not None and len(held_out):
            self.held_out = HeldOut(
                held_out, draws=draws, batch_size=eval_batch, collate=self.collate, inputs=self._inputs
            )
        self._first_error: float | None = None
        tune(family, model, precision, seed)
        denoiser = family.denoiser
        reference = None
        if "reference" in loss.needs and references is None:
            reference = Reference(denoiser, "adapter_off" if self.lora else "frozen_copy")
        self._module = DenoisingErrors(family, denoiser, reference)

    # --- the seam ----------------------------------------------------------------------------------------------------

    def module(self) -> DenoisingErrors:
        return self._module

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self._module.parameters() if p.requires_grad]}]

    def collate(self, items: Sequence[Example]) -> Batch:
        return collate(items, self.family, self.cache)

    def step(self, module: nn.Module, batch: Batch, backward: Backward, *, at: int) -> Mapping[str, Tensor]:
        inputs = self._inputs(batch)
        with torch.no_grad() if self.split_pair else nullcontext():
            errors: Errors = module(*inputs, paired=self.kind is PAIRS)
        if batch.reference is not None:
            errors = errors._replace(reference=batch.reference)
        if self.split_pair:
            errors = errors._replace(policy=errors.policy.detach().requires_grad_())
            if errors.shift is not None:
                errors = errors._replace(shift=errors.shift.detach().requires_grad_())
        slots, labels = self.kind.scored(batch, errors)
        loss, report = step_loss(self.loss, slots, items=len(batch.timestep), at=at, **labels)
        if self.split_pair:
            _backward_in_halves(module, inputs, errors, loss.mean(), backward)
        else:
            report |= entanglement(self._module.parameters(), slots, every=self.entanglement_every, at=at)
            backward(loss.mean())
        with torch.no_grad():
            roles = batch.flatten(self.kind.roles(batch.spread(batch.worth, torch.nan)))
            error, known = errors.policy.detach(), errors.reference
            chosen = error[roles == 1].mean()
            return {
                **report,
                "loss": loss.detach().mean(),
                "chosen_error": chosen,
                "rejected_error": error[roles == -1].mean(),
                "chosen_error_ratio": chosen.new_tensor(torch.nan)
                if known is None
                else chosen / known[roles == 1].mean(),
                **{f"loss/{name}": mean for name, mean in by_timestep(loss.detach(), batch.timestep).items()},
            }

    def evaluate(self, module: nn.Module, folder: Path, step: int) -> Report:
        report: Report = {}
        if self.held_out is not None:
            report |= self.held_out.measure(module, self._first_error, self.loss.beta(self.loss.terms[0], step))
            if self._first_error is None:
                self._first_error = report["chosen_error"]
        if self.sample and not is_sharded(module):
            report |= self._draw(folder / f"step-{step:08d}")
        return report

    def state_dict(self) -> dict[str, Any]:
        return {"first_error": self._first_error, "loss": self.loss.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first_error = state["first_error"]
        self.loss.load_state_dict(state["loss"])

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        policy = {name.removeprefix("policy."): w for name, w in weights.items() if name.startswith("policy.")}
        (self.family.save_lora if self.lora else self.family.save_full)(folder, policy)

    # --- what the denoiser is asked ----------------------------------------------------------------------------------

    def fill(
        self,
        training: Examples | BucketedExamples,
        data: Mapping[str, Any],
        *,
        batch_size: int,
        workers: int,
    ) -> None:
        """Complete the caches for training and held-out records, then take encoders that are done off the device.

        data: what makes the records these records, for the reference errors.
        """
        how: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
        measured = [] if self.held_out is None else self.held_out.examples.parts
        sources = [*training.parts, *measured]
        if self.cache is not None:
            complete_cache(self.cache, sources, **how)
            self._encoders_to(torch.device("cpu"))
        if self.references is not None:
            visits: list[int | str] = [*range(training.parts[0].draws)]
            fixed: list[int | str] = [f"held-out {n}" for n in range(self.draws)]
            module = self._module.eval()
            complete_references(
                self.references,
                sources,
                [visits] * len(training.parts) + [fixed] * len(measured),
                {**data, "draws": [len(visits), self.draws]},
                errors=lambda batch: module(*self._inputs(batch), with_reference=False, paired=False).policy,
                collate=self.collate,
                autocast=self._autocast,
                **how,
            )
            module.train()

    def _encoders_to(self, device: torch.device) -> None:
        for part in encoders_of(self.family):
            part.to(device)
        if device.type == "cpu" and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _autocast(self) -> AbstractContextManager[Any]:
        """Return the context of forwards that the loop does not see: encoding and sampling."""
        return autocast(self.precision)

    @torch.no_grad()
    def _inputs(self, batch: Batch) -> _Inputs:
        with self._autocast():
            if batch.posterior is None:
                assert batch.pixels is not None
                mean, std = self.family.encode_image(batch.pixels)
            else:
                mean, std = batch.posterior
            conditioning = batch.conditioning or self.family.encode_text(batch.tokens)
        latents = mean + std * batch.vae_noise
        noise, t = batch.noise[batch.record], batch.timestep[batch.record]
        return _Inputs(
            noisy=self.family.add_noise(latents, noise, t),
            t=t,
            conditioning=conditioning,
            target=self.family.target(latents, noise, t),
        )

    # --- held-out measures -------------------------------------------------------------------------------------------

    def _draw(self, folder: Path) -> Report:
        """Draw the fixed prompts at fixed seeds into `folder`, on the main process."""
        assert self.sample is not None
        state = PartialState()
        prompts = self.sample.prompts or (self.held_out.prompts(self.sample.count) if self.held_out else [])
        saturation = [float("nan")]
        if state.is_main_process and prompts:
            self.family.pipeline.set_progress_bar_config(disable=True)
            if self.cache is not None:
                self._encoders_to(state.device)
            with self._autocast():
                samples = list(
                    generate(
                        self.family.pipeline,
                        prompts,
                        list(range(len(prompts))),
                        steps=self.sample.steps,
                        guidance=self.sample.guidance,
                        side=self.held_out.examples.side if self.held_out else None,
                        max_sequence_length=self.family.max_sequence_length,
                    )
                )
            if self.cache is not None:
                self._encoders_to(torch.device("cpu"))
            folder.mkdir(parents=True, exist_ok=True)
            for number, sample in enumerate(samples):
                sample.image.save(folder / f"{number:03d}.png")
            make_image_grid([s.image for s in samples], 1, len(samples)).save(folder / "grid.png")
            (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
            saturation = [sum(s.saturation for s in samples) / len(samples)]
        broadcast_object_list(saturation)
        return {"saturation": saturation[0]}


def _backward_in_halves(module: nn.Module, inputs: _Inputs, errors: Errors, loss: Tensor, backward: Backward) -> None:
    """Go backward through `loss` with the activations of one half of the images at a time: of pairs, one side.

    errors: of a forward without gradients, as leaves. The chain rule does the rest: with the loss's gradient by each error
    known, the weights' gradient is the sum over the errors, each computed again.
    """
    leaves = [errors.policy] if errors.shift is None else [errors.policy, errors.shift]
    by_error, by_shift = (*torch.autograd.grad(loss, leaves, allow_unused=True), None)[:2]
    halves = len(errors.policy.chunk(2))  # one, where there is but one image
    for half in range(halves):

        def mine(tensor: Tensor, half: int = half) -> Tensor:
            return tensor.chunk(2)[half]

        conditioning = {name: mine(tensor) for name, tensor in inputs.conditioning.items()}
        again: Errors = module(
            mine(inputs.noisy),
            mine(inputs.t),
            conditioning,
            mine(inputs.target),
            with_reference=by_shift is not None,
            paired=False,
        )
        surrogate = torch.zeros_like(again.policy).sum()
        if by_error is not None:
            surrogate = surrogate + (mine(by_error) * again.policy).sum()
        if by_shift is not None:
            assert again.shift is not None
            surrogate = surrogate + (mine(by_shift) * again.shift).sum()
        backward(surrogate, last=half == halves - 1)

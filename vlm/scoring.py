"""Log-probabilities of answers under a policy and its reference: the only road through the trained weights."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from palate.errors import UserError
from vlm.batch import Batch
from vlm.feature_store import FeatureStore
from vlm.layout import Rows, separate_rows, shared_rows
from vlm.loading import Loaded
from vlm.logps import Scored, score_places
from vlm.reference import reference_of


class TokenScores(NamedTuple):
    """What policy and reference say of every answer token. All are `(B, A, T)`, float32, 0 where `mask` is False."""

    mask: Tensor
    """bool: True at tokens of answers, the end-of-turn token among them."""
    policy: Tensor | None
    """log-probabilities under the policy, nats; None where `with_policy` is False."""
    reference: Tensor | None
    """log-probabilities under the reference, nats; None where there is none or it was not asked for."""
    target_policy: Tensor | None = None
    """log-probabilities of `targets` at the same places, from the same logits."""
    target_reference: Tensor | None = None
    argmax: Tensor | None = None
    """long: the policy's likeliest token at each place, given the answer's tokens before it."""
    kl: Tensor | None = None
    """KL(reference || policy) of the next-token distributions, nats (tdpo)."""


class AnswerScores(nn.Module):
    """Scores A answers to each of B prompts. The loop prepares this one module; everything goes through `forward`."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        with_reference: bool = True,
        shared: bool = True,
        chunks: int = 8,
        store: FeatureStore | None = None,
    ) -> None:
        """Take the model after its trained parts were chosen (`vlm.tuning.tune`): the reference holds a frozen copy of
        exactly what trains in full, or switches the adapters off.

        shared: one row [prompt | answer 1 | ...] with a 4-D mask (see `vlm.self_test`), or one row an answer.
        chunks: how many slices of answer places the head is applied to, one at a time, recomputed in the backward.
        store: where features of images are kept; it rests where tower or projector train, or where weights are sharded.
        """
        super().__init__()
        self.policy = loaded.model
        self.family, self.attention = loaded.family, loaded.attention
        self.shared, self.chunks, self.store = shared, chunks, store
        self.reference = reference_of(loaded.model) if with_reference else None
        self._sees = any(
            parameter.requires_grad and self.family.part_of(name) in ("projector", "tower")
            for name, parameter in self.policy.named_parameters()
        )

    def forward(
        self,
        batch: Batch,
        *,
        targets: Tensor | None = None,
        with_policy: bool = True,
        with_reference: bool = True,
        with_argmax: bool = False,
        with_kl: bool = False,
    ) -> TokenScores:
        """Return the scores of a batch. Wrap it in `torch.no_grad()` where no gradient is wanted.

        targets: `(B, A, T)` further token ids to score at the answers' places; negative where there is none. POVID's stage
        2 takes them from `argmax` of a forward on noised pixels, and gets them scored here at no extra forward.

        Where tower or projector train, or several processes run, a batch without images sends a blank one through them,
        with weight zero: every rank then runs the same modules, and none waits for another.
        """
        mask = batch.mask
        tokens = batch.answers[mask]
        wanted = None if targets is None else targets[mask]
        frozen = None if self._sees else self._features(self.policy, batch)
        reference, other = None, None
        if with_reference and self.reference is not None:
            with self.reference.of(self.policy) as model:
                seen = frozen if frozen is not None else self._features(model, batch)
                states = self._states(model, batch, seen)
                reference = self._head(model, states, tokens, wanted)
                other = (model, states)
        policy = None
        if with_policy:
            seen = frozen if frozen is not None else self._features(self.policy, batch)
            hidden = self._states(self.policy, batch, seen)
            if with_kl and other is None:
                raise TypeError("The KL divergence needs a live reference.")
            policy = self._head(
                self.policy,
                hidden,
                tokens,
                wanted,
                other=other if with_kl else None,
                with_argmax=with_argmax,
            )

        def back(scored: Scored | None, name: str) -> Tensor | None:
            values = None if scored is None else getattr(scored, name)
            return None if values is None else values.new_zeros(mask.shape).masked_scatter(mask, values)

        return TokenScores(
            mask=mask,
            policy=back(policy, "logps"),
            reference=back(reference, "logps"),
            target_policy=back(policy, "targets"),
            target_reference=back(reference, "targets"),
            argmax=back(policy, "argmax"),
            kl=back(policy, "kl"),
        )

    def features(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the features (K, n, width) of the batch's distinct images, to keep and pass as `Batch.features`.

        Raises TypeError where tower or projector train: their features would grow old.
        """
        if self._sees:
            raise TypeError("Features of images can be kept only where neither tower nor projector train.")
        found = self._features(self.policy, batch)
        return () if found is None else found

    # --- the steps of a forward --------------------------------------------------------------------------------------

    def _features(self, model: Any, batch: Batch) -> tuple[Tensor, ...] | None:
        """Return the features of each distinct image; None where there is none and nothing waits for them."""
        if batch.features is not None:
            return batch.features
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not (any(batch.images) or self._sees or together):
            return None
        whole = not isinstance(self, FSDPModule) and next(model.parameters()).numel()  # ZeRO-3 leaves none
        if self.store is not None and batch.keys and not self._sees and whole:
            return self._kept(self.store, model, batch)
        with nullcontext() if self._sees else torch.no_grad():
            found = self.family.features(model, batch.pixels)
        if found.shape[1] != sum(batch.image_tokens):
            raise UserError(
                f"The prompts hold {sum(batch.image_tokens)} image tokens and the tower made {found.shape[1]} features: the "
                "processor does not belong to this model."
            )
        return found.split(batch.image_tokens, dim=1)

    @torch.no_grad()
    def _kept(self, store: FeatureStore, model: Any, batch: Batch) -> tuple[Tensor, ...]:
        """Return the features of each distinct image from the store, after putting there what it lacks."""
        found = []
        for key, image in zip(batch.keys, self.family.each(batch.pixels, batch.image_tokens)):
            features = store.get(key, batch.prompt.device)
            if features is None:
                features = self.family.features(model, image)
                store.put(key, features)
            found.append(features)
        return tuple(found)

    def _states(self, model: Any, batch: Batch, features: tuple[Tensor, ...] | None) -> Tensor:
        """Return the hidden states that predict the answer tokens, (N, width), N = `mask.sum()`."""
        rows = self._rows(batch, model)
        seen = {}
        if rows.images:
            assert features is not None
            joined = torch.cat([features[image] for image in rows.images], dim=1)
            seen["mm_encoder_outputs"] = {"image": self.family.encoder_output(joined)}
        hidden: Tensor = model.base_model(**rows.inputs, **seen, use_cache=False).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, rows.at[batch.mask])
        if features is not None and not rows.images:
            chosen = chosen + 0.0 * sum(feature.sum() for feature in features)
        return chosen

    def _rows(self, batch: Batch, model: Any) -> Rows:
        if self.shared:
            return shared_rows(batch, self.family, additive=model.dtype if self.attention == "eager" else None)
        return separate_rows(batch, self.family)

    def _head(
        self,
        model: Any,
        hidden: Tensor,
        tokens: Tensor,
        targets: Tensor | None,
        *,
        other: tuple[Any, Tensor] | None = None,
        with_argmax: bool = False,
    ) -> Scored:
        return score_places(
            lambda states: self.family.head(model, states),
            hidden,
            tokens,
            targets=targets,
            reference=None if other is None else (lambda states: self.family.head(other[0], states), other[1]),
            with_argmax=with_argmax,
            chunks=self.chunks,
        )

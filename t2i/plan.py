"""What a training run would hold in memory and compute, from its configuration alone.

The family is made without weights (`t2i.blueprint`), tuned by the same code as a run, and taken through a micro-batch on
torch's meta device: encoding, reference, forward and backward. `LiveBytes` counts what lives at once. Optimiser state and
averages are arithmetic. Not counted: what libraries hold for themselves, scratch space of kernels, fragmentation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from palate.live_bytes import LiveBytes
from palate.objectives.table import NEEDS
from palate.training.reference import Reference
from t2i.blueprint import blueprint
from t2i.data import side_of
from t2i.diffusion_score import DenoisingErrors
from t2i.families.base import Family, Frame
from t2i.kernels import Kernels, Operations
from t2i.quantisation import block_layers, check_quantisation
from t2i.settings import T2IConfig
from t2i.train import build_loss
from t2i.tuning import DTYPES, tune

META = torch.device("meta")
IMAGES = {"auto": 2, "pairs": 2, "ratings": 1, "rankings": 4}
"""Images of a record, by kind of data; rankings are taken to have the four of Syn-Pic (2410.18013)."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in nf4: 4 bits, an 8-bit scale for 64 weights, an fp32 scale for 256 scales (2305.14314, section 3)."""


@dataclass(frozen=True)
class Prediction:
    """Memory in bytes at the worst moment of a step, and the work of one optimiser step on one process."""

    parts: dict[str, int]
    """What is held all the time, by name."""
    moment: Literal["encoding", "forward and backward"]
    """When most is held."""
    passing: int
    """Activations, gradients and the like, on top of `parts`, at that moment."""
    products: int
    """Floating-point operations of matrix products and attention in an optimiser step."""
    convolutions: int
    """Floating-point operations of convolutions."""
    filling: int = 0
    """Bytes while a cache of encodings is filled, before the first step: encoders, denoiser and what encoding takes."""

    @property
    def peak(self) -> int:
        """Bytes at the worst moment of a step."""
        return sum(self.parts.values()) + self.passing

    @property
    def most(self) -> int:
        """Bytes that the device must have."""
        return max(self.peak, self.filling)


def predict(config: T2IConfig, device: Literal["cpu", "cuda"]) -> Prediction:
    """Return what a run of `config` on `device` would hold and compute. Nothing of the model is loaded.

    On a CPU, encoders that a cache makes idle stay in memory; a GPU is rid of them once it is filled. Raises UserError for a
    pipeline that no family covers, and for a base that cannot be quantised.
    """
    check_quantisation(
        config.model.quantise, tuning=config.model.tuning, device=META if device == "cuda" else torch.device("cpu")
    )
    family = blueprint(config.model.path, config.model.max_sequence_length)
    denoiser = family.denoiser
    nf4 = config.model.quantise == "nf4"
    as_loaded = dict(block_layers(denoiser)) if nf4 else {}
    tune(family, _on_meta(config), config.train.precision, config.train.seed, device=META)
    if config.model.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing(_checkpoint(_dtype(config)))  # type: ignore[operator]
    saved = sum(int(layer.weight.nbytes - NF4_BYTES * layer.weight.numel()) for layer in as_loaded.values())
    needs = build_loss(config.objective, dict.fromkeys(NEEDS, True)).needs
    reference = None
    if "reference" in needs and config.reference.kind == "online":
        reference = Reference(denoiser, "adapter_off" if config.model.tuning == "lora" else "frozen_copy")
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    encoders = _bytes_of_encoders(family)
    idle = encoders if config.data.cache and device == "cuda" else 0
    parts = {
        "denoiser": _bytes(denoiser) - saved - (sum(p.nbytes for p in trained) if config.model.tuning == "lora" else 0),
        "adapter": sum(p.nbytes for p in trained) if config.model.tuning == "lora" else 0,
        "frozen reference": _bytes(reference) if reference is not None else 0,
        "autoencoder and text encoders": encoders - idle,
        "optimiser state": sum(state_bytes(p, config.optim.name) for p in trained),
        "average of weights": sum(p.nbytes for p in trained) if config.train.ema_decay else 0,
    }
    encoding, inputs, before = _encode(family, config)
    filling = 0
    if config.data.cache:
        later = parts["optimiser state"] + parts["average of weights"]
        filling, encoding, before = sum(parts.values()) - later + idle + encoding, 0, {}
    module = DenoisingErrors(family, denoiser, reference)
    if config.train.accumulation > 1:  # from the second micro-batch on, the gradients are there
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
    step, work = _step(module, inputs, config, trained)
    counts = [*before.items(), *work.items()]
    convolutions = sum(count for name, count in counts if "conv" in name)
    products = sum(count for _, count in counts) - convolutions
    return Prediction(
        parts={name: size for name, size in parts.items() if size},
        moment="encoding" if encoding > step else "forward and backward",
        passing=max(encoding, step),
        products=products * config.train.accumulation,
        convolutions=convolutions * config.train.accumulation,
        filling=filling,
    )


def state_bytes(parameter: Tensor, optimizer: str) -> int:
    """Return the bytes of an optimiser's state of a parameter.

    adamw: two moments. adamw8bit: the same in 8 bits with an fp32 scale for 256 values; tensors below 4096 values stay as
    they are (bitsandbytes' defaults). adafactor: a row and a column of second moments, or all of a vector's (1804.04235).
    """
    count = parameter.numel()
    if optimizer == "adamw8bit" and count >= 4096:
        return 2 * (count + 4 * -(-count // 256))
    if optimizer == "adafactor":
        shape = parameter.shape
        return 4 * (count // shape[-1] + count // shape[-2] if len(shape) >= 2 else count)
    return 2 * parameter.nbytes


def _on_meta(config: T2IConfig) -> Any:
    """Return the model's settings with what has no meaning, or no layer, without a device."""
    model = copy.copy(config.model)
    model.attention = "auto"
    if model.quantise == "nf4":
        model.quantise = "none"
    return model


def _checkpoint(dtype: torch.dtype | None) -> Callable[..., Any]:
    """Return how a block is checkpointed: as diffusers does by default, with the stand-ins in its second forward too."""

    def run(block: nn.Module, *args: Any) -> Any:
        contexts = lambda: (nullcontext(), Kernels(dtype))
        return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts)

    return run


def _bytes(module: nn.Module) -> int:
    tensors = {id(t): t.nbytes for t in (*module.parameters(), *module.buffers())}
    return sum(tensors.values())


def _bytes_of_encoders(family: Family) -> int:
    parts = family.pipeline.components.values()
    return sum(_bytes(part) for part in parts if isinstance(part, nn.Module) and part is not family.denoiser)


def _dtype(config: T2IConfig) -> torch.dtype | None:
    return None if config.train.precision == "fp32" else DTYPES[config.train.precision]


@torch.no_grad()
def _encode(family: Family, config: T2IConfig) -> tuple[int, tuple[Any, ...], dict[str, int]]:
    """Return the bytes that encoding takes at once (a micro-batch; for a cache `batch_size` images), the denoiser's inputs
    (noisy, t, conditioning, target), and the operations by operator."""
    rows = IMAGES[config.data.kind] * config.train.batch_size
    at_once = config.train.batch_size if config.data.cache else rows
    side = side_of(config.data.image, family)
    frame = Frame((side, side), (0, 0), (side, side))
    tokens = {name: t.to(META) for name, t in family.tokenize(["a"] * rows, [frame] * rows).items()}
    latents = torch.empty(rows, *family.latent_shape(side, side), device=META)
    t = torch.stack([family.draw_timestep(torch.Generator().manual_seed(0))] * rows).to(META)
    with LiveBytes() as live, Operations() as work, Kernels(_dtype(config)):
        conditioning = family.encode_text(tokens)
        family.pipeline.vae.encode(torch.empty(at_once, 3, side, side, device=META))
    return live.peak, (latents, t, conditioning, torch.empty_like(latents)), work.counts


def _step(
    module: DenoisingErrors, inputs: tuple[Any, ...], config: T2IConfig, trained: list[nn.Parameter]
) -> tuple[int, dict[str, int]]:
    """Return the most bytes that a micro-batch holds besides weights, and its operations by operator."""
    noisy, t, conditioning, target = inputs
    paired = IMAGES[config.data.kind] == 2
    module.train()
    with LiveBytes() as live:
        live.hold([*module.parameters(), *module.buffers()])
        weights = live.now
        live.hold([noisy, t, *conditioning.values(), target, *(p.grad for p in trained if p.grad is not None)])
        with Operations() as work, Kernels(_dtype(config)):
            if not config.model.split_pair:
                torch.autograd.backward(module(*inputs, paired=paired).policy.sum())
            else:
                with torch.no_grad():
                    module(*inputs, paired=paired)
                for half in range(len(t.chunk(2))):
                    mine = [tensor.chunk(2)[half] for tensor in (noisy, t, target)]
                    texts = {name: tensor.chunk(2)[half] for name, tensor in conditioning.items()}
                    errors = module(mine[0], mine[1], texts, mine[2], with_reference=False, paired=False)
                    torch.autograd.backward(errors.policy.sum())
                    del errors
    return live.peak - weights, work.counts

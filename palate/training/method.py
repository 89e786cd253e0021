"""The seam between the loop and what is trained.

The loop knows accumulation, precision, sharding, checkpoints and logging. It does not know what a pair is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

Report = dict[str, float]
"""Name -> value of one optimiser step, averaged over its items. NaN means "nothing to report"."""


class Backward(Protocol):
    """What the loop hands to `Method.step`: scale the loss, go backward, synchronise when due."""

    def __call__(self, loss: Tensor, *, last: bool = True) -> None:
        """Go backward through a 0-d loss averaged over the micro-batch. `last=False` announces another call."""


def is_sharded(module: nn.Module) -> bool:
    """Return whether a prepared module's weights are divided over processes: then no process can use them alone."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule) or type(module).__name__ == "DeepSpeedEngine"


class Method(Protocol):
    """What a way of training gives to the loop."""

    def module(self) -> nn.Module:
        """Return the module that the loop prepares. Its `forward` is the only road through the trained weights."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups: `{"params": [...], optional "lr": ...}`."""

    def collate(self, items: Sequence[Any]) -> Any:
        """Return one micro-batch of CPU tensors from dataset items. Runs in the data workers."""

    def step(self, module: nn.Module, batch: Any, backward: Backward, *, at: int) -> Mapping[str, Tensor]:
        """Compute the loss of a micro-batch through the prepared `module` and call `backward` once or more.

        `at` counts the optimiser steps taken so far, for schedules. Returns 0-d tensors, always under the same names,
        among them `loss`.
        """

    def evaluate(self, module: nn.Module, folder: Path, step: int) -> Report:
        """Return held-out measures at fixed draws; may write images and the like into `folder`. Runs on all ranks."""

    def state_dict(self) -> dict[str, Any]:
        """Return what besides weights and optimiser a resumed run needs, the same on every rank."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write an ordinary model folder from the full trained `weights` of `module()`. Runs on the main rank."""

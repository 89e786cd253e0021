"""The frozen model that a policy is measured against, without a second copy of what does not train."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from palate.training.reference import Reference


class TrainedParts(nn.Module):
    """The policy as it is now: its own modules where nothing trains, frozen copies of those that do.

    Only the copies are submodules here. The rest stays the policy's, so that sharding and moving happen once.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        outer = (policy, policy.base_model)
        idle = list(_idle(policy, outer))
        shared: dict[int, Any] = {id(module): module for module in idle}
        shared |= {id(p): p for module in outer for p in module.parameters(recurse=False) if not p.requires_grad}
        twin = copy.deepcopy(policy, shared)
        owned = {id(module) for module in policy.modules()}
        copies = [module for module in twin.modules() if id(module) not in owned]
        for module in copies:
            module.training = False
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        # A module goes in whole where all of it was copied; one that holds shared modules stays out.
        whole = [module for module in copies if all(id(child) not in owned for child in module.modules())]
        inner = {id(child) for module in whole for child in module.modules() if child is not module}
        self.copies = nn.ModuleList(module for module in whole if id(module) not in inner)
        self._twin = (twin,)  # in a tuple, so that it is no submodule

    def train(self, mode: bool = True) -> TrainedParts:
        """Stay in evaluation mode."""
        return super().train(False)

    @contextmanager
    def of(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Give the module to call for reference scores, without gradients."""
        with torch.no_grad():
            yield self._twin[0]


def reference_of(policy: PreTrainedModel) -> Reference | TrainedParts:
    """Return the reference of a policy whose trained parts are chosen: its adapters off, or frozen copies of the parts.

    `vlm.tuning.tune` makes parts that train in full beside a LoRA into PEFT's `modules_to_save`, which go off with it.
    """
    return Reference(policy, "adapter_off") if has_adapters(policy) else TrainedParts(policy)


def has_adapters(policy: nn.Module) -> bool:
    """True where PEFT put adapters into the model."""
    return bool(getattr(policy, "peft_config", None))


def _idle(module: nn.Module, within: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Yield the largest submodules that have parameters, none of which trains.

    Models inside (a tower, a language model) are idle as a whole or not at all: transformers collects a model's hidden
    states by hooks on its layers, and a layer that two models share would count twice.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        if next(module.parameters(), None) is not None:
            yield module
    elif module in within or not isinstance(module, PreTrainedModel):
        for child in module.children():
            yield from _idle(child, within)

"""The frozen model that a policy is measured against."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import nn

ReferenceKind = Literal["adapter_off", "frozen_copy"]


class _HasAdapters(Protocol):
    def disable_adapters(self) -> None: ...
    def enable_adapters(self) -> None: ...


class Reference(nn.Module):
    """The reference of a policy: the policy with its adapter off, or a frozen copy of it.

    `adapter_off` costs no memory and suits policies whose only trained part is a PEFT adapter. `frozen_copy` holds a
    second set of weights in the policy's own precision, so that at the first step both give the same numbers.
    """

    def __init__(self, policy: nn.Module, kind: ReferenceKind) -> None:
        super().__init__()
        self.kind = kind
        self.copy = copy.deepcopy(policy).requires_grad_(False).eval() if kind == "frozen_copy" else None

    @contextmanager
    def of(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Give the module to call for reference scores, without gradients. Call it before the policy's forward."""
        with torch.no_grad():
            if self.copy is not None:
                yield self.copy
                return
            from peft.utils import ModulesToSaveWrapper

            adapted: _HasAdapters = policy  # type: ignore[assignment]
            adapted.disable_adapters()
            try:
                yield policy
            finally:
                adapted.enable_adapters()
                for module in policy.modules():  # transformers switches them off, and leaves them so
                    if isinstance(module, ModulesToSaveWrapper):
                        module.enable_adapters(True)

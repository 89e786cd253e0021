"""Which parts of a model train, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from palate.errors import UserError
from palate.hub import split_revision
from vlm.loading import Loaded

Tuning = Literal["full", "lora", "frozen"]


@dataclass(frozen=True)
class Lora:
    """Shape of the adapter."""

    rank: int = 128
    alpha: float = 256.0
    dropout: float = 0.0
    targets: Sequence[str] = ()
    """Names of the linear layers that get one (q_proj, ...); empty takes every linear layer of the part."""


def tune(
    loaded: Loaded,
    *,
    language: Tuning = "lora",
    projector: Tuning = "full",
    tower: Tuning = "frozen",
    lora: Lora | None = None,
    seed: int = 0,
) -> None:
    """Set what trains, in place. Beside a LoRA, parts that train in full become PEFT's `modules_to_save`, so that switching
    the adapter off gives back the whole of the model as it was loaded. What trains is in fp32 afterwards.

    Raises UserError where nothing would train, where a quantised part should train in full, or where the language model
    should train in full beside a LoRA elsewhere (the reference would be a second model all the same: train all in full).
    """
    model, how = loaded.model, {"language": language, "projector": projector, "tower": tower}
    if "lora" not in how.values() and "full" not in how.values():
        raise UserError("Nothing would train: language, projector and tower are all frozen.")
    if language == "full" and "lora" in how.values():
        raise UserError(
            "The language model cannot train in full beside a LoRA elsewhere. Set all parts to full or lora."
        )
    if language == "full" and getattr(model, "is_quantized", False):
        raise UserError("A quantised language model cannot train in full. Train a LoRA on it, or load it unquantised.")
    model.requires_grad_(False)
    full = _names(loaded, how, "full")
    if "lora" not in how.values():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in full)
    else:
        _add_adapter(loaded, how, full, lora or Lora(), seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def parameter_groups(loaded: Loaded, rates: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Return the optimiser's groups, one a part that trains, with `rates[part]` as its learning rate (None: the run's)."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in loaded.model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(loaded.family.part_of(name) or "", []).append(parameter)
    made = []
    for part, parameters in groups.items():
        rate = rates.get(part)
        made.append({"params": parameters} if rate is None else {"params": parameters, "lr": rate})
    return made


def _names(loaded: Loaded, how: Mapping[str, str], wanted: str) -> set[str]:
    """Return the names of the parameters of the parts that are tuned in this way, and on which answers depend."""
    family = loaded.family
    names = (name for name, _ in loaded.model.named_parameters(remove_duplicate=False))
    return {n for n in names if how.get(family.part_of(n) or "") == wanted and not family.idle(n)}


def _add_adapter(loaded: Loaded, how: Mapping[str, str], full: set[str], lora: Lora, seed: int) -> None:
    from peft import LoraConfig

    if loaded.is_adapter:
        raise UserError(
            f"{loaded.source} is an adapter, and a second one on top of it could not name its base. Merge it first "
            "(`palate merge`), and train on the merged model."
        )
    heads = {id(loaded.model.get_output_embeddings()), id(loaded.model.get_input_embeddings())}
    inside = _names(loaded, how, "lora")
    targets = [
        name
        for name, module in loaded.model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module) not in heads
        and f"{name}.weight" in inside
        and (not lora.targets or name.rsplit(".", 1)[-1] in lora.targets)
    ]
    if not targets:
        raise UserError(f"No linear layer is called {', '.join(lora.targets)}; see `model.named_modules()`.")
    path, revision = split_revision(loaded.source)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=list(_whole(loaded.model, full)) or None,
        base_model_name_or_path=str(Path(path).resolve()) if Path(path).exists() else path,
        revision=revision,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loaded.model.add_adapter(config)


def _whole(module: nn.Module, wanted: set[str], prefix: str = "") -> Iterator[str]:
    """Yield the names of the largest modules of which every parameter is wanted."""
    names = [f"{prefix}{name}" for name, _ in module.named_parameters(remove_duplicate=False)]
    if names and all(name in wanted for name in names) and not isinstance(module, nn.ModuleList):
        yield prefix.removesuffix(".")
        return
    for name, child in module.named_children():
        yield from _whole(child, wanted, f"{prefix}{name}.")

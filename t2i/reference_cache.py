"""The reference's denoising errors at drawn timesteps and noises, computed once: training then holds one model.

With D draws a pair has D fixed (timestep, noise, crop, flip, caption dropout), which its visits take in turn, so that later
epochs and other runs on the same reference compute nothing anew. Before the first step the policy is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from palate.errors import UserError
from palate.records import Pair
from palate.tensor_store import TensorStore, weights_hash
from t2i.families.base import Family

PART = 4096
"""Errors in one file of the cache: what a kill can cost."""

Draw = tuple[int, int, int | str]
"""Which of the pair lists, the pair in it, and the visit whose draws it has."""


class ReferenceErrors:
    """Errors `(2,)` of the reference on a pair's pictures, chosen first, by pair and draw."""

    def __init__(self, folder: Path, family: Family, settings: Mapping[str, Any]) -> None:
        """family: before it is tuned. settings: everything else that changes the errors, as JSON can hold it."""
        parts = {name: p for name, p in family.pipeline.components.items() if isinstance(p, torch.nn.Module)}
        options = {k: str(v) for k, v in family.pipeline.scheduler.config.items() if not k.startswith("_")}
        made = {"family": family.name, "weights": weights_hash(sorted(parts.items())), "scheduler": options}
        self.store = TensorStore(folder, {**made, **settings})

    def of(self, pair: Pair, visit: int | str) -> Tensor:
        """Return the errors `(2,)`; raises UserError where the cache has none."""
        try:
            return self.store[error_key(pair, visit)]["errors"]
        except KeyError:
            raise UserError(
                f"The cache {self.store.folder} has no reference errors of the pair {pair.id}: have the data changed since "
                f"it was filled? Remove {self.store.folder}/complete-*.json, and what is missing will be computed."
            ) from None


def error_key(pair: Pair, visit: int | str) -> str:
    """Return the key of a pair's draw."""
    return f"{pair.id} {visit}"


@torch.no_grad()
def complete_references(
    cache: ReferenceErrors,
    sources: Sequence[Any],
    draws: Sequence[Sequence[int | str]],
    data: Mapping[str, Any],
    *,
    errors: Callable[[Any], Tensor],
    collate: Callable[[list[Any]], Any],
    batch_size: int,
    workers: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Look up what is on disk, and compute what it lacks of the draws of each source's pairs (`t2i.data.PairExamples`).

    errors: returns `(2B,)` errors of the untrained policy on a batch. data: what makes the pairs these pairs. Every
    process takes part and does its share. A killed fill goes on where it stopped.
    """
    state, store = PartialState(), cache.store
    damaged = sum(gather_object([store.verify(state.process_index, state.num_processes)]))
    if damaged:
        state.print(f"{damaged} damaged files of reference errors were removed; what they held is computed again.")
    state.wait_for_everyone()
    store.load()
    if store.is_complete(data):
        return
    places: list[Draw] = [
        (n, index, draw) for n, source in enumerate(sources) for index in range(len(source)) for draw in draws[n]
    ]
    missing = Missing(sources, places[state.process_index :: state.num_processes], store, collate)
    loader = DataLoader(missing, batch_size=batch_size, num_workers=workers, collate_fn=missing.batch)
    waiting: dict[str, dict[str, Tensor]] = {}
    bar = tqdm(total=len(missing), desc="reference errors", unit="draw", disable=not state.is_main_process)
    for seen, keys, batch in loader:
        bar.update(seen)
        if isinstance(batch, UserError):
            raise batch
        if batch is not None:
            with autocast():
                found = errors(batch.to(state.device))
            both = torch.stack(found.float().cpu().chunk(2), dim=1)
            waiting.update({key: {"errors": row} for key, row in zip(keys, both, strict=True)})
        if len(waiting) >= PART:
            store.add(waiting)
            waiting = {}
    if waiting:
        store.add(waiting)
    bar.close()
    state.wait_for_everyone()
    store.load()
    if state.is_main_process:
        store.complete(data)


class Missing(Dataset[Any]):
    """`(key, example)` of draws that a store lacks; `(key, None)` of those it has."""

    def __init__(
        self, sources: Sequence[Any], places: Sequence[Draw], store: TensorStore, collate: Callable[[list[Any]], Any]
    ) -> None:
        self.sources, self.places, self.store, self._collate = sources, places, store, collate

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[str, Any] | UserError:
        n, index, visit = self.places[number]
        try:
            return self.sources[n].unknown(index, visit, self.store)
        except UserError as error:
            return error

    def batch(self, rows: list[Any]) -> tuple[int, list[str], Any]:
        """Return how many draws were seen, the keys of those to compute, and their batch."""
        refused = next((row for row in rows if isinstance(row, UserError)), None)
        if refused is not None:
            return len(rows), [], refused
        new = {key: example for key, example in rows if example is not None}
        return len(rows), list(new), self._collate(list(new.values())) if new else None

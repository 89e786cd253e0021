"""Computing what a reference cache lacks, before training: each process its share, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from palate.errors import UserError
from vlm.data import Example, Known, PairBatch, PairExamples, collate, name_of
from vlm.loading import Loaded
from vlm.method import stay_awake
from vlm.reference_cache import ReferenceCache, fingerprint_of
from vlm.scoring import AnswerScores
from vlm.settings import VLMConfig

PART = 256
"""Pairs in one part of the cache: what a kill can cost."""

Place = tuple[PairExamples, int, int | str]


def draws_of(examples: PairExamples, draws: int) -> list[int | str]:
    """Return the draws of a pair that training visits: one, or several of a random corruption."""
    return list(range(draws)) if _is_random(examples) else [0]


def _is_random(examples: PairExamples) -> bool:
    return examples.corruption is not None and examples.corruption.is_random


def open_cache(config: VLMConfig, loaded: Loaded, training: PairExamples, *, shared: bool) -> ReferenceCache:
    """Return the cache of a run's reference scores, as it is on disk. Call it before the model is tuned."""
    settings = {
        "max_length": config.data.max_length,
        "precision": config.train.precision,
        "quantise": config.model.quantise,
        "shared": shared,
        "apart": training.apart,
        "corruption": None if training.corruption is None else asdict(training.corruption),
        "seed": config.train.seed if _is_random(training) else None,
    }
    folder = Path(config.reference.folder or Path(config.out) / "reference")
    return ReferenceCache(folder, fingerprint_of(loaded.model, loaded.processor, settings))


def complete_cache(
    cache: ReferenceCache,
    config: VLMConfig,
    accelerator: Accelerator,
    scores: AnswerScores,
    identity: Mapping[str, Any],
    everything: Sequence[PairExamples],
) -> None:
    """Load the cache, and compute what it lacks of these examples.

    scores: of the model as it will be trained, before its first step: its policy is the reference. identity: what makes
    the training pairs these pairs. everything: the training examples first.
    """
    draws = config.reference.draws
    held = {name: getattr(config.data, name) for name in ("held_out", "held_out_path", "held_out_limit")}
    data = {**identity, **held, "draws": draws if _is_random(everything[0]) else 0}
    if accelerator.is_main_process and (damaged := cache.load()):
        cache.incomplete()
        accelerator.print(
            f"The reference cache {cache.folder} had {damaged} damaged files; what they held is computed again."
        )
    accelerator.wait_for_everyone()
    cache.load()
    if not cache.is_complete(data):
        places = [(e, n, draw) for e in everything for n in range(len(e)) for draw in draws_of(e, draws)]
        fill(
            cache,
            scores.eval(),
            places,
            batch_size=config.train.batch_size,
            workers=config.train.workers,
            autocast=accelerator.autocast(),
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        accelerator.wait_for_everyone()
        cache.load()
        if accelerator.is_main_process:
            cache.complete(data)
    accelerator.print(f"The reference's scores of {len(cache):,} pairs and draws are in {cache.folder}.")


@torch.no_grad()
def fill(
    cache: ReferenceCache,
    scores: AnswerScores,
    places: Sequence[Place],
    *,
    batch_size: int,
    workers: int,
    autocast: AbstractContextManager[Any],
    rank: int = 0,
    world: int = 1,
) -> int:
    """Score what the cache lacks among `places` (examples, index, draw) of this process, and return how many it scored.

    scores: of a model that has not trained yet, whose policy is the reference, in evaluation mode, on its device.
    """
    stay_awake(scores)
    device = next(scores.parameters()).device
    missing = _Missing(places[rank::world], cache)
    loader = DataLoader(missing, batch_size=batch_size, num_workers=workers, collate_fn=missing.collate)
    waiting: dict[str, Known] = {}
    count = 0
    bar = tqdm(total=len(missing), desc="reference", unit="pair", disable=rank > 0)
    with autocast:
        for seen, names, batch in loader:
            bar.update(seen)
            if isinstance(batch, UserError):
                raise batch
            if batch is not None:
                waiting.update(zip(names, _score(scores, batch.to(device)), strict=True))
                count += len(names)
            if len(waiting) >= PART:
                cache.add(waiting)
                waiting = {}
    if waiting:
        cache.add(waiting)
    bar.close()
    return count


def _score(scores: AnswerScores, batch: PairBatch) -> Iterator[Known]:
    answers = scores(batch.answers, with_reference=False).policy
    worse = None if batch.corrupted is None else scores(batch.corrupted, with_reference=False).policy
    assert answers is not None
    by_pair, lengths = batch.by_pair(answers), batch.by_pair(batch.answers.answer_lengths[..., None])[..., 0]
    for row in range(len(batch)):
        chosen, rejected = (by_pair[row, side, : lengths[row, side]].cpu() for side in (0, 1))
        corrupted = None
        if worse is not None and batch.corrupted is not None:
            corrupted = worse[row, 0, : batch.corrupted.answer_lengths[row, 0]].cpu()
        yield Known((chosen, rejected), corrupted)


class _Missing(Dataset[tuple[str, Example] | UserError | None]):
    """The examples of places that the cache lacks; None for one that is there, a UserError as a value."""

    def __init__(self, places: Sequence[Place], cache: ReferenceCache) -> None:
        self.places, self.cache = places, cache

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[str, Example] | UserError | None:
        examples, index, draw = self.places[number]
        try:
            pair, pictures = examples.pairs.read(index)
            name = name_of(pair.id, examples.draw_of(draw), examples.corruption)
            return None if name in self.cache else (name, examples.example(pair, pictures, draw))
        except UserError as error:
            return UserError(str(error))

    def collate(self, items: Sequence[Any]) -> tuple[int, list[str], PairBatch | UserError | None]:
        error = next((item for item in items if isinstance(item, UserError)), None)
        found: dict[str, Example] = dict(item for item in items if isinstance(item, tuple))
        if error is not None or not found:
            return len(items), [], error
        encoder = self.places[0][0].encoder
        return len(items), list(found), collate(list(found.values()), encoder)

"""Train a text-to-image model on preferences.

accelerate launch -m t2i.train --config t2i/sd15_dpo --data.path pairs.parquet --model.path stable-diffusion-v1-5/...
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from palate.config import load_config
from palate.errors import UserError, run
from palate.training.objective import ObjectiveConfig
from t2i.settings import ScoreConfig, T2IConfig

if TYPE_CHECKING:
    from PIL import Image

    from palate.objectives import Loss
    from t2i.buckets import Buckets, Size
    from t2i.cache import EncodingCache
    from t2i.families.base import Family
    from t2i.kinds import Record
    from t2i.listing import Listing
    from t2i.pairs import ImageSource, Subset
    from t2i.reference_cache import ReferenceErrors
    from t2i.wholes import Whole


def main(argv: Sequence[str] | None = None) -> None:
    """Read the configuration, train, and print where the model is."""
    config, resolved = load_config(T2IConfig, sys.argv[1:] if argv is None else argv, "t2i.train")
    for name, value in (("--model.path", config.model.path), ("--data.path", config.data.path)):
        if not value:
            raise UserError(f"{name} is missing: give a local path or a hub id.")
    train(config, resolved)


def train(config: T2IConfig, resolved: str) -> Any:
    """Train as configured and return the loop's `Outcome`. `resolved` is the configuration as YAML."""
    # Heavy imports wait until the configuration is known to be good.
    from palate.training.data import Data, MapData, StreamData
    from palate.training.loop import explain_memory, fit, start_accelerator
    from palate.training.order import Grouped
    from t2i.attention import compile_denoisers
    from t2i.batches import Example
    from t2i.buckets import BucketedExamples, by_bucket
    from t2i.data import Examples, ImageConfig, RecordList, Records, mirrorings
    from t2i.families import load_family
    from t2i.few_step import with_score
    from t2i.filling import finished_listing
    from t2i.method import PreferenceMethod
    from t2i.pairs import ImageSource, stream_whole

    quiet_libraries()
    accelerator = start_accelerator(config)
    cached = config.reference.kind == "cached"

    def suited(source: ImageSource) -> Loss:
        source.require_captions()
        source.require_suitable(config.objective.terms)
        return build_loss(config.objective, source.available(live=not cached), source.kind.slots)

    family = cache = listing = None
    if config.data.streaming and config.data.cache:  # where the stream was read before, it is not opened
        family = with_score(load_family(config.model.path, config.model.max_sequence_length), config.score)
        cache = open_cache(config, family)
        listing = finished_listing(cache, stream_whole(config.data), mirrorings(config.data.image))
    source = ImageSource(config.data, listing)
    loss = suited(source)
    family = family or with_score(load_family(config.model.path, config.model.max_sequence_length), config.score)
    if config.data.cache and cache is None:
        cache = open_cache(config, family)
    if cache is not None and config.data.streaming and listing is None:
        source = ImageSource(config.data, fill_listing(config, source.stream_whole(loss.needs), cache))
        loss = suited(source)
    dual = config.data.captions == "dual"
    fingerprint = {**source.fingerprint, "image": config.data.image.identity()}

    references = open_references(config, family) if cached and "reference" in loss.needs else None
    draws = config.reference.draws if references else 0
    if references:
        fingerprint["reference draws"] = draws

    def examples(records: Records, image: ImageConfig, size: Size | None = None) -> Examples:
        return Examples(
            records,
            family,
            image,
            config.train.seed,
            kind=source.kind,
            dual=dual,
            cache=cache,
            references=references,
            draws=draws,
            size=size,
        )

    buckets = buckets_of(config, family)
    sizes = partial(sizes_of, config, cache, dict[int, Any]())

    def shaped(records: Subset, image: ImageConfig) -> Examples | BucketedExamples:
        if buckets is None:
            return examples(records, image)
        found = by_bucket(buckets, sizes(records))
        accelerator.print(", ".join(f"{len(places):,} at {h} x {w}" for (h, w), places in found.items()))
        return BucketedExamples([examples(records.part(places), image, size) for size, places in found.items()])

    still = replace(config.data.image, crop="center", flip=False, caption_dropout=0.0)
    held_out = shaped(source.held_out, still) if source.held_out else None
    data: Data
    if source.training is not None:
        training = shaped(source.training, config.data.image)
        order = source.order()
        if isinstance(training, BucketedExamples):
            step_size = config.train.batch_size * config.train.accumulation * accelerator.num_processes
            order = partial(Grouped, training.groups, step_size)
        data = MapData(training, len(training), fingerprint, order)
    else:
        streamed = examples(RecordList([]), config.data.image)

        def finish(item: tuple[tuple[Record, list[Image.Image]], int]) -> Example:
            (record, pictures), visit = item
            return streamed.example(record, pictures, visit)

        source.order()  # refuses what a stream cannot do

        data = StreamData(partial(source.stream, needs=loss.needs), finish, fingerprint)
    with explain_memory("loading the model", config.train, how=config):
        method = PreferenceMethod(
            family,
            loss,
            config.model,
            config.train.precision,
            kind=source.kind,
            seed=config.train.seed,
            held_out=held_out,
            draws=config.eval.draws,
            eval_batch=config.train.batch_size,
            sample=config.sample,
            entanglement_every=config.objective.entanglement_every,
            cache=cache,
            references=references,
        )
    if config.train.compile:
        compile_denoisers(method.module())
    if cache or references:
        assert isinstance(data, MapData) and isinstance(data.dataset, (Examples, BucketedExamples))
        held = {name: getattr(config.data, name) for name in ("held_out", "held_out_path", "held_out_limit")}
        with explain_memory("filling the cache", config.train, how=config):
            method.fill(
                data.dataset,
                {**fingerprint, **held},
                batch_size=config.train.batch_size,
                workers=config.train.workers,
            )
    made_of = {"model": asdict(config.model), "objective": asdict(config.objective), **score_key(config)}
    for name in ("gradient_checkpointing", "split_pair", "attention"):  # they change memory and speed, not results
        made_of["model"].pop(name)
    if not config.model.max_sequence_length:
        made_of["model"].pop("max_sequence_length")
    accelerator.print(source.summary())
    outcome = fit(method, data, config, accelerator, fingerprint=made_of, resolved=resolved)
    accelerator.print(source.summary(), f"The model is in {outcome.model}.", sep="\n")
    return outcome


def open_cache(config: T2IConfig, family: Family) -> EncodingCache:
    """Return the cache of a run; raises UserError for what it cannot hold."""
    from pathlib import Path

    from t2i.cache import EncodingCache
    from t2i.data import side_of

    if config.data.image.crop == "random":
        raise UserError("--data.cache keeps one crop of each picture: take --data.image.crop center, or no cache.")
    side = side_of(config.data.image, family)
    buckets = buckets_of(config, family)
    return EncodingCache(Path(config.data.cache), family, side=side, precision=config.train.precision, buckets=buckets)


def fill_listing(config: T2IConfig, whole: Whole, cache: EncodingCache) -> Listing:
    """Return the listing of all records of a dataset, of which the cache then has every picture."""
    from accelerate import PartialState

    from palate.training.loop import explain_memory
    from t2i.data import mirrorings
    from t2i.filling import complete_listing

    cache.family.pipeline.vae.requires_grad_(False).eval().to(PartialState().device)
    how: dict[str, Any] = {"batch_size": config.train.batch_size, "workers": config.train.workers}
    with explain_memory("filling the cache", config.train, how=config):
        return complete_listing(cache, whole, mirrorings(config.data.image), **how)


def buckets_of(config: T2IConfig, family: Family) -> Buckets | None:
    """Return the sizes of training images; None where all are square."""
    from math import lcm

    from t2i.buckets import Buckets
    from t2i.data import side_of

    image = config.data.image
    if not image.buckets:
        return None
    step = lcm(image.bucket_step, family.multiple)
    return Buckets(side_of(image, family), step, image.max_aspect, family.longest_edge)


def sizes_of(
    config: T2IConfig, cache: EncodingCache | None, known: dict[int, Any], records: Subset
) -> list[Sequence[Size] | None]:
    """Return (height, width) of the pictures of each record, None where it is left out: by listing, or by headers.

    known: what was found before, for other records of one dataset.
    """
    from pathlib import Path

    from t2i.buckets import read_sizes

    if cache is not None:
        if records.listing is None:
            if id(records.whole) not in known:
                known[id(records.whole)] = fill_listing(config, records.whole, cache)
            records.listing = known[id(records.whole)]
        return [records.listing.sizes(index) for index in records.indices]
    if id(records.whole) not in known:
        known[id(records.whole)] = read_sizes(records.whole, Path(config.out))
    return [known[id(records.whole)].get(index) for index in records.indices]


def open_references(config: T2IConfig, family: Family) -> ReferenceErrors:
    """Return the cache of a run's reference errors; `family` must not be tuned yet."""
    from pathlib import Path

    from t2i.reference_cache import ReferenceErrors

    if config.data.streaming and not config.data.cache:
        raise UserError(
            "--reference.kind cached needs records by number, and --data.streaming reads one row after the other: give "
            "--data.cache, which lists them."
        )
    settings = {
        "image": config.data.image.identity(),
        "captions": config.data.captions,
        "precision": config.train.precision,
        "seed": config.train.seed,
        **({} if config.model.quantise == "none" else {"quantise": config.model.quantise}),
        **({"tokens": config.model.max_sequence_length} if config.model.max_sequence_length else {}),
        # Under an adapter a half-precision base is cast whole; in full training the reference keeps fp32 weights.
        **({} if config.train.precision == "fp32" else {"tuning": config.model.tuning}),
        **score_key(config),
    }
    return ReferenceErrors(Path(config.reference.folder or Path(config.out) / "reference"), family, settings)


def score_key(config: T2IConfig) -> dict[str, Any]:
    """Return what tells runs of another diffusion score apart; nothing for the usual one."""
    return {} if config.score == ScoreConfig() else {"score": asdict(config.score)}


def build_loss(
    objective: ObjectiveConfig, available: Mapping[str, bool | str], slots: Sequence[str] = ("chosen", "rejected")
) -> Loss:
    """Return the loss; raises UserError for what the data or a diffusion model cannot give."""
    from palate.training import objective as preference

    return preference.build_loss(objective, "diffusion", available, slots=slots)


def quiet_libraries() -> None:
    """Keep diffusers' and transformers' loading chatter out of a run's own output."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    run(main)

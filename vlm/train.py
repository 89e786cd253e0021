"""Train a vision-language model on preferences.

accelerate launch -m vlm.train --config vlm/llava15_povid --data.path povid.json --data.image_root coco
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.config import load_config
from palate.errors import UserError, run
from vlm.settings import VLMConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image

    from palate.conversations import AnswerPair
    from vlm.data import Example
    from vlm.encoding import Encoder
    from vlm.loading import Loaded
    from vlm.method import Measure

PARTS = ("language", "projector", "tower")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the configuration, train, and print where the model is."""
    config, resolved = load_config(VLMConfig, sys.argv[1:] if argv is None else argv, "vlm.train")
    for name, value in (("--model.path", config.model.path), ("--data.path", config.data.path)):
        if not value:
            raise UserError(f"{name} is missing: give a local path or a hub id.")
    train(config, resolved)


def train(config: VLMConfig, resolved: str, *, measures: Sequence[Measure] = ()) -> Any:
    """Train as configured and return the loop's `Outcome`. `resolved` is the configuration as YAML.

    measures: what an evaluation measures (`vlm.method.Measure`) beside the benchmarks that `config.eval` names.
    """
    # Heavy imports wait until the configuration is known to be good.
    from palate.training.data import Data, MapData, StreamData
    from palate.training.loop import explain_memory, fit, start_accelerator
    from vlm.data import PairExamples, PairList
    from vlm.encoding import Encoder
    from vlm.evaluate.run import measures_of
    from vlm.feature_store import FeatureStore
    from vlm.method import AnswerMethod
    from vlm.objective import Wanted, build_loss
    from vlm.pairs import AnswerSource
    from vlm.recipes import resolve
    from vlm.reference_fill import complete_cache, open_cache
    from vlm.scoring import AnswerScores

    quiet_libraries()
    _check_features(config)
    benchmarks = measures_of(config.eval, batch_size=2 * config.train.batch_size)
    accelerator = start_accelerator(config)
    if benchmarks and accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
        raise UserError(
            "The model cannot answer a benchmark while its weights are divided over processes. Leave --eval.pope, "
            "--eval.chair and --eval.amber out, and run `palate eval` on the model afterwards."
        )
    model, wanted = config.model, config.objective
    recipe = resolve(
        wanted.recipe,
        wanted.fidelity,
        terms=wanted.terms,
        corruption=wanted.corruption,
        mixtures=wanted.mixtures,
        beta=wanted.beta,
    )
    source = AnswerSource(config.data)
    loss = build_loss(config, recipe, source.data_available())
    with explain_memory("loading the model", config.train, how=config):
        loaded = _load(config, accelerator)
    encoder = Encoder(loaded, max_length=config.data.max_length)
    common: dict[str, Any] = {"seed": config.train.seed, "apart": source.apart}
    corruption = recipe.corruption if Wanted.by(loss, recipe).corruption else None
    held_out = PairExamples(source.held_out, encoder, **common) if source.held_out else None
    training = PairExamples(source.training or PairList([]), encoder, corruption=corruption, **common)

    def finish(item: tuple[tuple[AnswerPair, list[Image.Image]], int]) -> Example:
        (pair, pictures), visit = item
        return training.example(pair, pictures, visit)

    data: Data
    if source.training is not None:
        data = MapData(training, len(source.training), source.fingerprint)
        first = [training[n, 0] for n in range(min(config.train.batch_size, len(training)))]
    else:
        stream = partial(source.stream, needs=loss.needs)
        data = StreamData(stream, finish, source.fingerprint)
        first = [finish(item) for _, item in islice(stream({"position": 0}), config.train.batch_size)]
    with explain_memory("the first batch", config.train, how=config):
        shared = _may_share(config, accelerator, loaded, encoder, first)
    cached = config.reference.kind == "cached"
    cache = open_cache(config, loaded, training, shared=shared) if cached else None
    store = FeatureStore(Path(model.features), loaded) if model.features else None
    with explain_memory("preparing the model", config.train, how=config):
        _tune(config, loaded)
        live = "reference" in loss.needs and not cached
        scores = AnswerScores(loaded, with_reference=live, shared=shared, chunks=model.head_chunks, store=store)
    if cache is not None:
        everything = [training, *([held_out] if held_out else [])]
        with explain_memory("computing the reference", config.train, how=config):
            complete_cache(cache, config, accelerator, scores, source.fingerprint, everything)
        for examples in everything:
            examples.known, examples.draws = cache, config.reference.draws
    method = AnswerMethod(
        loaded,
        encoder,
        loss,
        recipe,
        scores,
        rates={part: getattr(model, part).lr for part in PARTS},
        changed_weight=wanted.changed_weight,
        held_out=held_out,
        eval_batch=config.train.batch_size,
        entanglement_every=wanted.entanglement_every,
        measures=[_in_precision(measure, accelerator) for measure in (*benchmarks, *measures)],
    )
    made_of = {"model": asdict(model), "objective": asdict(wanted), "reference": asdict(config.reference)}
    free = ("gradient_checkpointing", "head_chunks", "features")
    for group, name in (*(("model", name) for name in free), ("reference", "folder")):
        made_of[group].pop(name)
    accelerator.print(source.summary())
    outcome = fit(method, data, config, accelerator, fingerprint=made_of, resolved=resolved)
    accelerator.print(source.summary(), f"The model is in {outcome.model}.", sep="\n")
    return outcome


def _check_features(config: VLMConfig) -> None:
    """Raise UserError where features of images are to be kept and would grow old."""
    trained = [part for part in ("projector", "tower") if getattr(config.model, part).tuning != "frozen"]
    if config.model.features and trained:
        raise UserError(
            f"--model.features keeps what tower and projector make of an image, and the {' and the '.join(trained)} would "
            f"train. Set --model.{trained[0]}.tuning frozen, or leave --model.features out."
        )


def _in_precision(measure: Measure, accelerator: Accelerator) -> Measure:
    """Return the measure, its forwards in the run's precision: parts that train are in fp32 beside frozen ones in bf16."""

    def measured(loaded: Loaded, folder: Path, step: int) -> dict[str, float]:
        with accelerator.autocast():
            return measure(loaded, folder, step)

    return measured


def _load(config: VLMConfig, accelerator: Accelerator) -> Loaded:
    """Return the model on its device, frozen parts in the precision of the forward."""
    from vlm.loading import load_model
    from vlm.method import stay_awake

    dtype: Any = "bf16" if config.train.precision == "bf16" else "fp32"
    loaded = load_model(config.model.path, dtype=dtype, quantise=config.model.quantise)
    if config.model.quantise == "none":
        loaded.model.to(accelerator.device)
    stay_awake(loaded.model)
    return loaded


def _tune(config: VLMConfig, loaded: Loaded) -> None:
    """Set what trains."""
    from vlm.tuning import Lora, tune

    model = config.model
    adapter = Lora(model.lora.rank, model.lora.alpha, model.lora.dropout, tuple(model.lora.targets))
    how: dict[str, Any] = {part: getattr(model, part).tuning for part in PARTS}
    tune(loaded, **how, lora=adapter, seed=config.train.seed)
    if model.gradient_checkpointing:
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False})


def _may_share(
    config: VLMConfig, accelerator: Accelerator, loaded: Loaded, encoder: Encoder, first: Sequence[Example]
) -> bool:
    """Return whether answers share their prompt, as the settings say or the first batch shows."""
    from accelerate.utils import broadcast_object_list

    from vlm.data import collate
    from vlm.self_test import may_share

    if config.model.shared_prefix != "auto":
        return config.model.shared_prefix == "on" and not (first and first[0].rejected)
    verdict: list[Any] = [None]
    if accelerator.is_main_process:
        verdict = [may_share(loaded, collate(first, encoder).answers.to(accelerator.device))]
    broadcast_object_list(verdict)
    accelerator.print(verdict[0].reason)
    return verdict[0].shared


def quiet_libraries() -> None:
    """Keep transformers' loading chatter out of a run's own output."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    run(main)

"""Train a scorer on preferences.

accelerate launch -m rewards.train --config rewards/pickscore --data.path pairs.parquet --out runs/scorer
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from palate.config import load_config
from palate.errors import UserError, run
from rewards.settings import RewardConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Read the configuration, train, and print where the scorer is."""
    config, resolved = load_config(RewardConfig, sys.argv[1:] if argv is None else argv, "rewards.train")
    for name, value in (("--model.path", config.model.path), ("--data.path", config.data.path)):
        if not value:
            raise UserError(f"{name} is missing: give a local path or a hub id.")
    train(config, resolved)


def train(config: RewardConfig, resolved: str) -> Any:
    """Train as configured and return the loop's `Outcome`. `resolved` is the configuration as YAML."""
    # Heavy imports wait until the configuration is known to be good.
    import transformers

    from palate.training.data import MapData
    from palate.training.loop import explain_memory, fit, start_accelerator
    from rewards.data import Examples
    from rewards.judgements import Source
    from rewards.learning import LearnedScorer
    from rewards.losses import OBJECTIVES
    from rewards.trainable import load_trainable

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    accelerator = start_accelerator(config)
    objective = OBJECTIVES[config.objective.name]
    source = Source(config.data, objective.weighting, drops_ties=objective.drops_ties)
    with explain_memory("loading the model", config.train):
        trainable = load_trainable(config.model)
        prepare, skip = trainable.preprocess.geometry, config.data.on_bad_row == "skip"
        held_out = Examples(source.held_out, source.held, prepare, skip=skip)
        method = LearnedScorer(
            trainable,
            objective,
            config.model,
            lr=config.optim.lr,
            held_out=held_out,
            eval_batch=config.train.batch_size,
        )
    examples = Examples(source.training, source.kept, prepare, source.weights, skip=skip)
    data = MapData(examples, len(examples), {**source.fingerprint, "preprocess": trainable.preprocess.version})
    made_of = {"model": asdict(config.model), "objective": asdict(config.objective)}
    made_of["model"].pop("gradient_checkpointing")
    accelerator.print(source.summary())
    outcome = fit(method, data, config, accelerator, fingerprint=made_of, resolved=resolved)
    skipped = int(examples.skipped) + int(held_out.skipped)
    if skipped:
        accelerator.print(f"Unreadable images met and replaced by the next row: {skipped:,} times on this process.")
    accelerator.print(f"The model is in {outcome.model}.")
    if outcome.best:
        accelerator.print(f"The best on held-out data is in {outcome.best}: load_scorer({str(outcome.best)!r}).")
    return outcome


if __name__ == "__main__":
    run(main)

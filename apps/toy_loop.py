"""The steps of the loop on the toy world, which the demo and the proofs share: draw, vote, train, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from palate.conversions import pairs_to_rankings
from palate.readers import write_pairs
from palate.records import Pair, Ranking
from palate.toy.perceive import describe
from palate.toy.taste import taste, trivial_accuracies
from palate.toy.voters import cast_votes, population
from palate.toy.world import prompts
from palate.votes import votes_to_pairs
from t2i.evaluate import Comparison, compare_folders
from t2i.sample import draw_folder, load_pipeline, read_folder, repeat_prompts

HOW = {"steps": 20, "guidance": 3.5}
"""How images are drawn: denoising steps and guidance scale."""
HOWS: dict[str, dict[str, Any]] = {
    "toy:sd": HOW,
    "toy:turbo": {"steps": 4, "guidance": 0.0},
    "toy:flow": {**HOW, "max_sequence_length": 1},
}
"""First model -> how it, and what is trained from it, draws."""
BATCH = 64
"""Images per forward."""
TIE = 0.01
"""Two images whose taste (in [0, 1]) differs by no more are a tie."""
HELD_OUT_SEED = 1_000_000
SCORERS = ("toy-taste", "toy-semantic", "toy-visual", "toy")


@dataclass(frozen=True)
class Voted:
    """Pairs of the base model's images, labelled by the toy's voters."""

    pairs: Sequence[Pair]
    summary: str
    trivial: dict[str, dict[str, float]]
    """Accuracy with which trivial statistics predict the taste on the drawn images, by statistic and part."""


def draw_and_vote(
    folder: Path, *, count: int, seed: int = 0, voters: int = 50, votes_per_pair: int = 3, base: str = "toy:sd"
) -> Voted:
    """Draw two images for each of `count` training prompts and let the toy's voters choose. Resumes a drawn folder.

    Only pairs on which the voters agree are kept, as `votes_to_pairs(min_agreement=1)` does.
    """
    groups = _draw_groups(folder, count=count, each=2, seed=seed, base=base)
    battles = [(prompt, one, other) for prompt, (one, other) in groups]
    votes = cast_votes(
        tqdm(battles, desc="vote", unit="battle"), population(voters, seed), seed, votes_per_battle=votes_per_pair
    )
    pairs, summary = votes_to_pairs(votes, min_agreement=1.0)
    return Voted(pairs, str(summary), trivial_accuracies(battles, TIE))


def draw_and_rank(
    folder: Path, *, count: int, each: int = 4, seed: int = 0, voters: int = 50, votes_per_pair: int = 3
) -> list[Ranking]:
    """Draw `each` images for `count` training prompts and rank them by their shares of wins in all pairs' votes.

    Every two images of a prompt are voted on as in `draw_and_vote`; ties and split votes count half. Resumes a drawn
    folder.
    """
    battles = [
        (prompt, one, other)
        for prompt, images in _draw_groups(folder, count=count, each=each, seed=seed)
        for one, other in combinations(images, 2)
    ]
    votes = cast_votes(
        tqdm(battles, desc="vote", unit="battle"), population(voters, seed), seed, votes_per_battle=votes_per_pair
    )
    rankings = []
    size = each * (each - 1) // 2 * votes_per_pair
    for begin in range(0, len(votes), size):  # a prompt that comes again has other images, and is ranked by itself
        pairs, _ = votes_to_pairs(votes[begin : begin + size], ties="soft")
        rankings += pairs_to_rankings(pairs)[0]
    return rankings


def _draw_groups(
    folder: Path, *, count: int, each: int, seed: int, base: str = "toy:sd"
) -> list[tuple[str, list[Image.Image]]]:
    """Return `count` training prompts, repeated where they are fewer, with `each` images of the base model."""
    known = prompts("train")
    wanted, seeds = repeat_prompts([known[k % len(known)] for k in range(count)], each, seed * 10 * count)
    draw(base, wanted, seeds, folder, label="draw pairs" if each == 2 else "draw rankings", how=HOWS[base])
    drawn = {(row["prompt"], row["seed"]): row["file_name"] for row in read_folder(folder)}
    images = [Image.open(folder / drawn[place]).convert("RGB") for place in zip(wanted, seeds, strict=True)]
    return [(wanted[begin], images[begin : begin + each]) for begin in range(0, len(wanted), each)]


def write_voted(path: Path, pairs: Sequence[Pair]) -> None:
    """Write the pairs with a caption of each image (dual captions), so that every method can train on the file."""
    write_pairs([with_captions(pair) for pair in pairs], path)


def with_captions(pair: Pair) -> Pair:
    """Return the pair with a true description of each image as its caption."""
    chosen, rejected = describe(pair.chosen.decode()), describe(pair.rejected.decode())
    return replace(pair, prompt_chosen=chosen, prompt_rejected=rejected)


def with_random_labels(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Return the pairs, each swapped with probability 1/2 and called certain: the control that must not win."""
    coin = Random(seed)
    return [
        replace(pair, chosen=pair.rejected, rejected=pair.chosen, p_chosen=1.0)
        if coin.random() < 0.5
        else replace(pair, p_chosen=1.0)
        for pair in pairs
    ]


def with_taste_gaps(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs whose chosen image has the higher hidden taste, with the difference as their score gap."""
    gaps = []
    for pair in pairs:
        chosen, rejected = (taste(pair.prompt, media.decode()).total for media in (pair.chosen, pair.rejected))
        if chosen - rejected > TIE:
            meta = {**pair.meta, "score_unit": "taste"}
            gaps.append(replace(pair, score_gap=chosen - rejected, p_chosen=1.0, meta=meta))
    return gaps


def train(recipe: str, pairs: Path, out: Path, *overrides: str) -> Any:
    """Train by the recipe, as `palate train t2i` would, and return the loop's outcome."""
    from palate.config import load_config
    from t2i.settings import T2IConfig
    from t2i.train import train as train_t2i

    argv = ["--config", recipe, "--data.path", str(pairs), "--out", str(out), *overrides]
    config, resolved = load_config(T2IConfig, argv, "t2i.train")
    return train_t2i(config, resolved)


def train_online(recipe: str, out: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train in rounds by the recipe, as `palate train online` would, and return what each round came to."""
    from palate.config import load_config
    from t2i.online import train_online as train_in_rounds
    from t2i.settings import OnlineConfig

    config, _ = load_config(OnlineConfig, ["--config", recipe, "--out", str(out), *overrides], "t2i.online")
    return train_in_rounds(config)


def draw(
    model: str,
    wanted: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    label: str,
    batch_size: int = BATCH,
    how: Mapping[str, Any] = HOW,
) -> None:
    """Draw what the folder lacks."""
    pipeline = load_pipeline(model)
    for _ in draw_folder(pipeline, wanted, seeds, folder, model=model, progress=label, batch_size=batch_size, **how):
        pass


def draw_held_out(
    model: str, folder: Path, *, count: int, label: str, batch_size: int = BATCH, base: str = "toy:sd"
) -> None:
    """Draw one image for each of the first `count` held-out prompts, at seeds that no training image had.

    base: the first model, which says how to draw.
    """
    wanted, seeds = repeat_prompts(prompts("held_out")[:count], 1, HELD_OUT_SEED)
    draw(model, wanted, seeds, folder, label=label, batch_size=batch_size, how=HOWS[base])


def compare(model: Path, base: Path, scorers: Sequence[str] = SCORERS) -> Comparison:
    """Compare two folders of held-out draws under the toy's scorers."""
    from rewards import load_scorer

    return compare_folders(model, base, [load_scorer(name) for name in scorers], tie=TIE)

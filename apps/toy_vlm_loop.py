"""The vision-language loop on the toy world, shared by the demo and the proofs: describe, reject, train, find the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from apps.toy_writer import Control, ToyWriter
from palate.conversations import AnswerPair, Exchange, Message
from palate.readers.answers import open_answer_pairs
from palate.readers.writing import write_answer_pairs
from palate.records import Media
from palate.statistics import Estimate
from palate.toy.grammar import Split
from palate.toy.scenes import DESCRIBE, Thing, contents, make_scene, sentence
from palate.toy.vlm_truth import Truth, judge, measure, recall_change
from palate.toy.world import render

if TYPE_CHECKING:
    from vlm.rejected import Builder

Rejected = Literal["own", "povid", "bpo", "random", "swap"]
"""Where rejected answers come from: the model's own hallucinations; a writer who names absent partners (POVID); the model
under noise, and a writer who rewrites (BPO); or the controls, a random thing injected and a thing swapped."""

BASE = "toy:vlm"
BATCH = 128
"""Pictures per forward."""
LONGEST = 64
"""Tokens of an answer; five things take 23."""
HELD_OUT_SEED = 1_000_000


def true_answers(split: Split, count: int, seed: int) -> list[Exchange]:
    """Return `count` pictures of a split, each with a question and its true description."""
    found = []
    for index in range(count):
        scene = make_scene(split, index, seed)
        asked = Message.user(DESCRIBE[index % len(DESCRIBE)], 1)
        found.append(Exchange((asked,), (Media.image(render(scene)),), sentence(contents(scene)), source="toy"))
    return found


def things_of(exchange: Exchange) -> tuple[Thing, ...]:
    """Return what the picture of a true answer shows."""
    return tuple(mention.thing for mention in judge(exchange.answer, ()).mentions)


def say(
    model: str, exchanges: Sequence[Exchange], file: Path, *, temperature: float = 0.0, seed: int = 0, label: str
) -> list[str]:
    """Return what a model answers to the questions. What the file holds already is not asked again."""
    from vlm.answering import Ask, answer_file
    from vlm.generate import LocalAnswerer
    from vlm.loading import load_model

    answerer = LocalAnswerer(
        load_model(model), batch_size=BATCH, max_new_tokens=LONGEST, temperature=temperature, seed=seed
    )
    asks = [Ask(exchange.id, exchange.prompt, exchange.images) for exchange in exchanges]
    return [row["answer"] for row in answer_file(answerer, asks, file, progress=label)]


def reject(kind: Rejected, exchanges: Sequence[Exchange], folder: Path, *, seed: int = 0) -> Path:
    """Return the parquet file of the pairs whose rejected answers are of a kind; makes it in `folder` if it is missing."""
    path = folder / f"{kind}.parquet"
    if not path.exists():
        write_answer_pairs({pair.id: pair for pair in _pairs(kind, exchanges, folder, seed)}.values(), path)
    return path


def _pairs(kind: Rejected, exchanges: Sequence[Exchange], folder: Path, seed: int) -> Iterator[AnswerPair]:
    from vlm.rejected import build_pairs

    if kind == "own":
        yield from own_hallucinations(exchanges, folder, seed)
    for builder in _builders(kind, seed):
        made = folder / "built" / f"{builder.method}.parquet"
        build_pairs(builder, exchanges, made, progress=builder.method)
        pairs = open_answer_pairs(made)
        yield from (pairs[index] for index in range(len(pairs)))


def _builders(kind: Rejected, seed: int) -> Iterator[Builder]:
    from vlm.loading import load_model
    from vlm.rejected.sampling import Weakened
    from vlm.rejected.writing import Written

    if kind == "povid":
        yield Written("povid-inject", ToyWriter("partner", seed), mode="description")
    elif kind == "bpo":
        yield Weakened(load_model(BASE), seed=seed, batch_size=BATCH, max_new_tokens=LONGEST)
        yield Written("bpo-inject", ToyWriter("rewrite", seed), mode="description")
    elif kind in ("random", "swap"):
        yield Control(kind, seed)


def own_hallucinations(exchanges: Sequence[Exchange], folder: Path, seed: int, rounds: int = 2) -> Iterator[AnswerPair]:
    """Yield pairs of true answers and what the base says itself at temperature 1, where that names what is not there."""
    for draw in range(rounds):
        file = folder / f"said-{draw}.jsonl"
        said = say(BASE, exchanges, file, temperature=1.0, seed=rounds * seed + draw, label="describe")
        for exchange, answer in zip(exchanges, said, strict=True):
            if judge(answer, things_of(exchange)).hallucinated:
                yield exchange.against(answer, {"method": "own", "temperature": 1.0, "seed": rounds * seed + draw})


def train(recipe: str, pairs: Path, out: Path, *overrides: str) -> Any:
    """Train by the recipe, as `palate train vlm` would, and return the loop's outcome."""
    from palate.config import load_config
    from vlm.settings import VLMConfig
    from vlm.train import train as train_vlm

    argv = ["--config", recipe, "--data.path", str(pairs), "--out", str(out), *overrides]
    config, resolved = load_config(VLMConfig, argv, "vlm.train")
    return train_vlm(config, resolved)


@dataclass(frozen=True)
class Told:
    """What a model says about held-out pictures, likeliest words first, and how true that is; the same at temperature 1."""

    answers: list[str]
    truth: Truth
    sampled: Truth


def tell(model: str, folder: Path, *, count: int, label: str) -> Told:
    """Let a model describe the first `count` held-out pictures, or read what it said before."""
    exchanges = held_out(count)
    pictures = [things_of(exchange) for exchange in exchanges]
    answers = say(model, exchanges, folder / "answers.jsonl", label=label)
    drawn = say(model, exchanges, folder / "sampled.jsonl", temperature=1.0, label=f"{label}, sampled")
    return Told(answers, measure(answers, pictures), measure(drawn, pictures))


def held_out(count: int) -> list[Exchange]:
    """Return the held-out pictures with their true answers: sets of things that no training picture shows."""
    return true_answers("held_out", count, HELD_OUT_SEED)


def change_of_recall(before: Told, after: Told) -> Estimate:
    """Return how the share of named things changed, picture by picture, after minus before."""
    pictures = [things_of(exchange) for exchange in held_out(len(before.answers))]
    return recall_change(before.answers, after.answers, pictures)

"""What is put before scorers: prompts with two or more images, and what people said of them."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from palate.errors import UserError
from palate.readers import PairDataset, open_pairs
from palate.readers.rankings import RANKINGS, RankingDataset, is_rankings, open_rankings
from rewards.calibration import tally
from rewards.protocol import ImageLike

KINDS = {"pickapic": "threshold", "hpdv2": "inversions", "imagereward": "pooled"}
"""Name of published data -> the rule that its publishers mark by. Other data are marked by "decisive"."""


@dataclass(frozen=True)
class Judgement:
    """What people said of the K images of one case."""

    values: tuple[float, ...]
    """(K,) how good the images were found; higher is better, equal is a tie."""
    annotators: tuple[tuple[float, ...], ...] = ()
    """The same by each annotator, where several judged the whole case."""
    tally: tuple[float, float, float] | None = None
    """Of a pair: votes for the first, ties, votes for the second."""

    def votes(self, first: int, second: int) -> tuple[float, float, float]:
        """Return the votes for image `first`, ties, and votes for image `second`; the label is one vote."""
        if self.tally is not None:
            return self.tally
        wins = [float(np.sign(v[first] - v[second])) for v in self.annotators or (self.values,)]
        return float(wins.count(1.0)), float(wins.count(0.0)), float(wins.count(-1.0))


@dataclass(frozen=True)
class Case:
    """One prompt with K images, ready to be scored. `row` is its number in the source."""

    row: int
    prompt: str
    images: tuple[ImageLike, ...]
    judgement: Judgement


@dataclass(frozen=True)
class Cases:
    """Cases by number. `take(i)` reads one, and raises BadRow where it cannot."""

    name: str
    rule: str
    prompts: Sequence[str]
    take: Callable[[int], Case]
    fingerprint: str
    """Changes with the path, the prompts and the labels."""
    summary: Callable[[], str]

    def __len__(self) -> int:
        return len(self.prompts)


def open_cases(data: str, *, images: str | None = None, split: str = "train", limit: int | None = None) -> Cases:
    """Return the cases at `data`: a path or hub id of pairs or rankings, or KIND:PATH with a name of `KINDS`.

    images: folder of the images of rankings. split: of pairs on the hub or in a saved dataset. Rows that no reader can
    use are left out and counted in `summary`.
    """
    kind, separator, rest = data.partition(":")
    known = bool(separator) and kind in KINDS
    path = rest if known else data
    if known and not path:
        raise UserError(f"--data {data} names no path: write {kind}:PATH.")
    rule = KINDS[kind] if known else "decisive"
    if kind in ("hpdv2", "imagereward") if known else _one_file(path) and is_rankings(path):
        formats = [name for name in RANKINGS if known and name.startswith(kind)]
        rankings = open_rankings(path, images=images, limit=limit, on_bad_row="skip")
        if formats and rankings.format not in formats:
            raise UserError(f"{path} holds {rankings.format}, not {kind}. Write {rankings.format}:{path}, or the path.")
        return _of_rankings(data, rule, rankings)
    pairs = open_pairs(path, format=kind if known else "auto", split=split, limit=limit, on_bad_row="skip")
    return _of_pairs(data, rule, pairs)


def _of_rankings(name: str, rule: str, rankings: RankingDataset) -> Cases:
    def take(index: int) -> Case:
        ranking = rankings[index]
        annotators = tuple(tuple(values) for values in ranking.meta.get("annotators", ()))
        return Case(rankings.row(index), ranking.prompt, ranking.outputs, Judgement(ranking.scores, annotators))

    labels = [ranking.scores for ranking in rankings]
    prompts = rankings.prompts()
    return Cases(name, rule, prompts, take, _fingerprint(name, prompts, labels), rankings.summary)


def _of_pairs(name: str, rule: str, pairs: PairDataset) -> Cases:
    def take(index: int) -> Case:
        pair, chosen, rejected = pairs.decoded(index)
        judgement = Judgement((pair.p_chosen, 1 - pair.p_chosen), tally=tally(pair))
        return Case(pairs.row(index), pair.prompt, (chosen, rejected), judgement)

    prompts = pairs.prompts()
    return Cases(name, rule, prompts, take, _fingerprint(name, prompts, pairs.p_chosen.tolist()), pairs.summary)


def _one_file(path: str) -> bool:
    return Path(path).suffix in (".json", ".parquet") and not glob.has_magic(path)


def _fingerprint(name: str, prompts: Sequence[str], labels: Sequence[object]) -> str:
    digest = blake2b(name.encode(), digest_size=16)
    for prompt, label in zip(prompts, labels, strict=True):
        digest.update(f"{prompt}\x1f{label}\x1e".encode())
    return digest.hexdigest()

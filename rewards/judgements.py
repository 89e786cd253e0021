"""The judgements that a scorer is trained on: read, divided by prompt, weighted. A pair is a ranking of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from palate.errors import UserError, unknown
from palate.readers import READERS, PairDataset, open_pairs
from palate.readers.rankings import RANKINGS, RankingDataset, is_rankings, open_rankings
from palate.training.held_out import hold_out
from rewards.calibration import tally
from rewards.settings import DataConfig

if TYPE_CHECKING:
    from PIL import Image

    from rewards.losses import Weighting


@dataclass(frozen=True)
class Labels:
    """What people said of the K images of a ranking."""

    preference: np.ndarray
    """(K, K) probability that i is better than j; NaN on the diagonal."""
    gains: np.ndarray
    """(K,) how good each is; higher is better."""
    best: np.ndarray
    """(K,) probability that each is the best; sums to 1."""
    votes: np.ndarray | None = None
    """(3,) of a pair: votes for the first, ties, votes for the second."""

    @classmethod
    def of_pair(cls, p_first: float, votes: Sequence[float]) -> Labels:
        """Return the labels of two images, of which the first is the better one with probability `p_first`."""
        p = np.array([p_first, 1 - p_first])
        return cls(np.array([[np.nan, p[0]], [p[1], np.nan]]), p, p, np.array(votes, dtype=float))

    @classmethod
    def of_scores(cls, scores: Sequence[float]) -> Labels:
        """Return the labels of a ranking by its scores; equal ones are ties."""
        gains = np.array(scores, dtype=float)
        preference = 0.5 + 0.5 * np.sign(gains[:, None] - gains[None, :])
        np.fill_diagonal(preference, np.nan)
        first = gains == gains.max()
        return cls(preference, gains, first / first.sum())


class Judgements(Protocol):
    """Rankings by number, with their pictures."""

    def __len__(self) -> int: ...

    def prompts(self) -> list[str]: ...

    def comparisons(self, *, ties: bool) -> np.ndarray:
        """Return how many pairs of images each ranking compares, with those that are tied or without, (N,)."""

    def read(self, index: int) -> tuple[str, Sequence[Image.Image], Labels]:
        """Return prompt, pictures (RGB) and labels. Raises BadRow."""

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return a hash of the prompts and labels of some rankings."""

    def summary(self) -> str:
        """Return a line on what was used and left out."""


class JudgedPairs:
    """Pairs as rankings of two, chosen first."""

    def __init__(self, pairs: PairDataset) -> None:
        self.pairs, self.summary, self.prompts = pairs, pairs.summary, pairs.prompts

    def __len__(self) -> int:
        return len(self.pairs)

    def comparisons(self, *, ties: bool) -> np.ndarray:
        return np.ones(len(self)) if ties else (self.pairs.p_chosen != 0.5).astype(float)

    def read(self, index: int) -> tuple[str, Sequence[Image.Image], Labels]:
        pair, chosen, rejected = self.pairs.decoded(index)
        return pair.prompt, (chosen, rejected), Labels.of_pair(pair.p_chosen, tally(pair))

    def fingerprint(self, indices: Sequence[int]) -> str:
        prompts, p_chosen = self.prompts(), self.pairs.p_chosen
        return _hash((prompts[index], p_chosen[index]) for index in indices)


class JudgedRankings:
    """Rankings of a file."""

    def __init__(self, rankings: RankingDataset) -> None:
        self.rankings, self.summary, self.prompts = rankings, rankings.summary, rankings.prompts

    def __len__(self) -> int:
        return len(self.rankings)

    def comparisons(self, *, ties: bool) -> np.ndarray:
        preferences = (Labels.of_scores(ranking.scores).preference for ranking in self.rankings)
        return np.array([np.isfinite(p).sum() / 2 - (0 if ties else (p == 0.5).sum() / 2) for p in preferences])

    def read(self, index: int) -> tuple[str, Sequence[Image.Image], Labels]:
        ranking, pictures = self.rankings.decoded(index)
        return ranking.prompt, pictures, Labels.of_scores(ranking.scores)

    def fingerprint(self, indices: Sequence[int]) -> str:
        return _hash((self.rankings[index].prompt, self.rankings[index].scores) for index in indices)


def open_judgements(config: DataConfig, path: str, split: str, limit: int | None) -> Judgements:
    """Return the pairs or rankings at `path`. Raises UserError as their readers do."""
    if config.format in RANKINGS or (config.format == "auto" and Path(path).is_file() and is_rankings(path)):
        return JudgedRankings(
            open_rankings(
                path,
                format=config.format,
                images=config.images or None,
                limit=limit,
                on_bad_row=config.on_bad_row,
            )
        )
    if config.format not in ("auto", *READERS):
        raise UserError(unknown("data format", config.format, ("auto", *READERS, *RANKINGS)))
    return JudgedPairs(
        open_pairs(path, format=config.format, split=split, limit=limit, ties=config.ties, on_bad_row=config.on_bad_row)
    )


class Source:
    """Training and held-out judgements, as `DataConfig` says. A prompt is in one of the two only."""

    def __init__(self, config: DataConfig, weighting: Weighting, *, drops_ties: bool) -> None:
        self.config = config
        everything = open_judgements(config, config.path, config.split, config.limit or None)
        prompts = everything.prompts()
        used = everything.comparisons(ties=not drops_ties) > 0
        if config.held_out_path:
            kept = list(range(len(everything)))
            others = open_judgements(config, config.held_out_path, config.held_out_split, config.held_out_limit)
            self.held_out, held = others, list(range(len(others)))
            self.shared = len(set(others.prompts()) & set(prompts))
        else:
            kept, held = hold_out(prompts, config.held_out, config.held_out_limit)
            self.held_out, self.shared = everything, 0
        self.training = everything
        self.kept = [index for index in kept if used[index]]
        self.held = held
        if not self.kept:
            raise UserError(f"Nothing of {config.path} is left to train on: all of it is held out, or ties.")
        comparisons = everything.comparisons(ties=not drops_ties)[self.kept]
        self.weights = weights(weighting, [prompts[index] for index in self.kept], comparisons)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What makes the training judgements these: a hash of their prompts and labels."""
        local = Path(self.config.path)
        path = str(local.resolve()) if local.exists() else self.config.path
        return {"path": path, "judgements": self.training.fingerprint(self.kept)}

    def summary(self) -> str:
        """Return a line on what is used and left out."""
        found = f"{self.training.summary()} Training on {len(self.kept):,}, held out {len(self.held):,}."
        if self.shared:
            found += f"\nCareful: {self.shared:,} prompts of {self.config.held_out_path} are trained on too."
        return found


def weights(weighting: Weighting, prompts: Sequence[str], comparisons: np.ndarray) -> np.ndarray:
    """Return the weight of each ranking in the loss, (N,), of mean 1.

    "prompt": every prompt counts alike, as PickScore's 1 / num_example_per_prompt; "comparisons": every comparison;
    "even": every ranking. PickScore's code divides by the sum of a batch's weights, here it is the mean over the data,
    so that a batch can be divided among processes.
    """
    if weighting == "even":
        return np.ones(len(prompts))
    if weighting == "comparisons":
        return comparisons / comparisons.mean()
    counts: dict[str, int] = {}
    for prompt in prompts:
        counts[prompt] = counts.get(prompt, 0) + 1
    share = np.array([1 / counts[prompt] for prompt in prompts])
    return share / share.mean()


def _hash(items: Any) -> str:
    digest = blake2b(digest_size=16)
    for prompt, label in items:
        digest.update(f"{prompt}\x1f{label}\x1e".encode())
    return digest.hexdigest()

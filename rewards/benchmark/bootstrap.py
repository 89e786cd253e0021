"""Intervals from resampling prompts: of a mean mark, and of the difference of two scorers on the same marks.

What is computed of one prompt's images goes together, so prompts are drawn, with replacement and keyed by the seed.
All scorers are resampled by the same draws, which is what makes their difference a paired one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from palate.errors import UserError
from palate.randomness import key
from palate.statistics import Estimate, mean_interval, share

_AT_ONCE = 2**24  # numbers of one block of draws


class Bootstrap:
    """Resamples the prompts behind M marks. `clusters` names each mark's prompt."""

    def __init__(self, clusters: Sequence[Hashable], *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> None:
        if draws < 100:
            raise UserError(f"A bootstrap interval needs at least 100 draws; got {draws}.")
        if not 0 < level < 1:
            raise UserError(f"The level of an interval lies between 0 and 1, for example 0.95; got {level}.")
        self.clusters, self.draws, self.seed, self.level = clusters, draws, seed, level
        places: dict[Hashable, int] = {}
        self._codes = np.array([places.setdefault(cluster, len(places)) for cluster in clusters], dtype=np.int64)
        self._groups = len(places)

    def means(self, marks: np.ndarray) -> np.ndarray:
        """Return the means of (M, S) marks of S scorers under each draw, (draws, S)."""
        groups = self._groups
        sums = np.stack([np.bincount(self._codes, column, groups) for column in marks.T], axis=1)
        counts = np.bincount(self._codes, minlength=groups)
        rng = np.random.default_rng(key(self.seed, "benchmark", 0, "bootstrap"))
        found, left = [], self.draws
        while left:
            block = min(left, max(1, _AT_ONCE // groups))
            drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=block).astype(float)
            found.append((drawn @ sums) / (drawn @ counts)[:, None])
            left -= block
        return np.concatenate(found)

    def share(self, marks: np.ndarray, drawn: np.ndarray) -> Estimate:
        """Return the mean of (M,) marks in [0, 1] with the percentile interval of its `drawn` means, (draws,).

        Where every prompt has the same mean, no draw differs, and the interval is that of `palate.statistics.share`.
        """
        known = share(marks, clusters=self.clusters, level=self.level)
        return self._interval(known, drawn)

    def difference(self, gains: np.ndarray, drawn: np.ndarray) -> Estimate:
        """Return the mean of (M,) paired differences with the percentile interval of its `drawn` means, (draws,)."""
        return self._interval(mean_interval(gains, clusters=self.clusters, level=self.level), drawn)

    def _interval(self, known: Estimate, drawn: np.ndarray) -> Estimate:
        low, high = np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2])
        if high - low < 1e-12:
            return known
        method = f"bootstrap of prompts, {self.draws} draws"
        return replace(known, low=float(low), high=float(high), method=method)

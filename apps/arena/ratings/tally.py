"""Running totals from which matchmaking reads where models stand: O(1) for a vote, a millisecond for a reading.

The board itself is computed from all votes (`board.py`); a tally keeps only counts, so its covariance takes votes for
independent. That is enough to choose the next battle, and too little to publish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.arena.ratings.fit import WEAK_PRIOR, Counts, fit
from apps.arena.ratings.table import VoteTable, outcome_codes
from palate.errors import UserError, unknown
from palate.records import OUTCOMES


@dataclass(frozen=True)
class Standing:
    """Where m models stand. theta: (m,), natural log-odds, mean 0. covariance: (m, m) of theta. battles: (m, m),
    symmetric, votes of any outcome between two models."""

    models: tuple[str, ...]
    theta: np.ndarray
    covariance: np.ndarray
    battles: np.ndarray


class Tally:
    """Counts of votes by models and outcome. Not safe for threads; readings are."""

    def __init__(self, models: Sequence[str] = ()) -> None:
        self._index: dict[str, int] = {}
        self._cells = np.zeros((0, 0, len(OUTCOMES)), dtype=np.int64)
        for model in models:
            self.add_model(model)

    @classmethod
    def of(cls, votes: VoteTable) -> Tally:
        """Return the totals of all votes that count."""
        tally, m = cls(votes.models), len(votes.models)
        tally._cells = cells(votes.counted()).reshape(m, m, len(OUTCOMES))
        return tally

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._index)

    def add_model(self, model: str) -> None:
        """Let a model take part; nothing happens if it does already."""
        if model not in self._index:
            self._index[model] = len(self._index)
            self._cells = np.pad(self._cells, ((0, 1), (0, 1), (0, 0)))

    def add(self, model_a: str, model_b: str, outcome: str, *, times: int = 1) -> None:
        """Count a vote; `times=-1` takes back one that no longer counts."""
        for model in (model_a, model_b):
            if model not in self._index:
                raise UserError(unknown("model of the arena", model, self._index))
        where = self._index[model_a], self._index[model_b], int(outcome_codes([outcome])[0])
        if self._cells[where] + times < 0:
            raise UserError(f"There is no vote '{outcome}' on '{model_a}' and '{model_b}' to take back.")
        self._cells[where] += times

    def standing(self) -> Standing:
        """Return where the models stand: Bradley-Terry, ties half, with the weak prior, so that newcomers have a place."""
        fitted = fit(Counts.of_cells(self._cells), prior=WEAK_PRIOR)
        total = self._cells.sum(-1)
        return Standing(self.models, fitted.theta, fitted.bread(), total + total.T)


def cells(votes: VoteTable) -> np.ndarray:
    """Return how many votes there are by model A, model B and outcome, (m, m, 4) int."""
    m, k = len(votes.models), len(OUTCOMES)
    at = (votes.model_a.astype(np.int64) * m + votes.model_b) * k + votes.outcome
    return np.bincount(at, minlength=m * m * k).reshape(m, m, k)

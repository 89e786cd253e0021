"""Does B beat A? A test that may be read after every vote.

Among votes with a winner, one per voter and pair of models, a pair without a difference is a fair coin. With k wins of B
in n, E = 2^n B(a+k, a+n-k) / B(a, a) is the likelihood of a coin of unknown bias, Beta(a, a), over that of a fair one
(Robbins, 1970). Under a fair coin E is a martingale that starts at 1, so that it ever reaches 1/alpha with probability at
most alpha (Ville, 1939): whoever looks, stops and looks again is still right. The verdict names the side with more wins;
where that side is truly the worse one, E stays lower still.

a = 20 expects shares between about .35 and .65, where arenas live; other shares take a few votes longer.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.special import betaln

from apps.arena.ratings.table import TIE, A, VoteTable

SHARPNESS = 20.0
Verdict = Literal["ahead", "behind", "open"]


def log_evidence(wins: np.ndarray | float, losses: np.ndarray | float, sharpness: float = SHARPNESS) -> np.ndarray:
    """Return ln E for each number of wins and losses; 0 for no vote, the same with the two exchanged."""
    wins, losses = np.asarray(wins, dtype=float), np.asarray(losses, dtype=float)
    mixed = betaln(sharpness + wins, sharpness + losses) - betaln(sharpness, sharpness)
    return (wins + losses) * math.log(2) + mixed


def verdict(wins: float, losses: float, alpha: float, sharpness: float = SHARPNESS) -> Verdict:
    """Return "ahead" or "behind" where E >= 1/alpha, else "open"."""
    if log_evidence(wins, losses, sharpness) < -math.log(alpha):
        return "open"
    return "ahead" if wins > losses else "behind"


def first_votes(votes: VoteTable) -> np.ndarray:
    """Return (m, m): over how many voters the row's model won the first vote with a winner that they gave this pair.

    votes: in order of time (`VoteTable.in_order`). Later votes on the pair by the same voter add nothing: they are no new
    coin.
    """
    m = len(votes.models)
    decisive = np.flatnonzero(votes.outcome < TIE)
    first = votes.model_a[decisive].astype(np.int64)
    second = votes.model_b[decisive].astype(np.int64)
    won = votes.outcome[decisive] == A
    low, high = np.minimum(first, second), np.maximum(first, second)
    low_won = won == (first < second)
    pair_of_voter = (votes.voter[decisive].astype(np.int64) * m + low) * m + high
    earliest = _first_positions(pair_of_voter, len(votes.voters) * m * m)
    winner = np.where(low_won, low, high)[earliest]
    loser = np.where(low_won, high, low)[earliest]
    return np.bincount(winner * m + loser, minlength=m * m).reshape(m, m)


def _first_positions(keys: np.ndarray, size: int) -> np.ndarray:
    """Return where each distinct key, 0 <= key < size, stands first."""
    if size > 50_000_000:
        return np.unique(keys, return_index=True)[1]
    first = np.full(size, -1, dtype=np.int64)
    first[keys[::-1]] = np.arange(len(keys))[::-1]  # the last assignment is the first vote
    return first[first >= 0]

"""Whether votes place all models on one scale.

Ratings are finite if and only if, however the models are split in two groups, each group took some credit from the other
(Ford, 1957): the graph of "took credit from" is strongly connected. Under Davidson's model votes with a winner must do
that alone, which suffices for finite ratings when there is a tie: ties could otherwise be explained by a growing nu.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from apps.arena.ratings.davidson import Ties


def took_credit(credit: np.ndarray, decided: np.ndarray, tied: np.ndarray, ties: Ties) -> np.ndarray:
    """Return (..., m, m) bool: the row's model beat the column's at least once (under "half": or tied with it).

    credit, decided, tied: as in `fit.Counts`, row = shown as A.
    """
    lost = decided - credit
    half = 0.0 if ties == "half" else tied / 2
    return (credit - half > 0) | np.swapaxes(lost - half > 0, -1, -2)


def bounded(credit: np.ndarray, decided: np.ndarray, tied: np.ndarray, ties: Ties) -> np.ndarray:
    """Return (...) bool: whether the ratings of each board are finite without a prior."""
    m = credit.shape[-1]
    reach = (took_credit(credit, decided, tied, ties) | np.eye(m, dtype=bool)).astype(np.float32)
    for _ in range(max(1, (m - 1).bit_length())):
        reach = np.minimum(reach @ reach, 1)
    return np.asarray(reach.all((-1, -2)))


def groups(decided: np.ndarray) -> np.ndarray:
    """Return (m,) int: models that share a number are linked by decided votes, directly or through others."""
    return connected_components(csr_array(decided > 0), directed=False)[1]

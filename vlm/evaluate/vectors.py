"""Which words mean the same, by word vectors that the user has."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from palate.errors import UserError


class WordVectors:
    """Words with vectors. `vectors(a, b)` says whether the cosine of two words' vectors is over `threshold`.

    A word without a vector is similar to none. AMBER takes spaCy's en_core_web_lg, and .8 for the threshold.
    """

    def __init__(self, vectors: dict[str, np.ndarray], threshold: float = 0.8) -> None:
        self._unit = {word: vector / n for word, vector in vectors.items() if (n := np.linalg.norm(vector)) > 0}
        self.threshold = threshold

    def __call__(self, first: str, second: str) -> bool:
        a, b = self._unit.get(first), self._unit.get(second)
        return a is not None and b is not None and float(a @ b) > self.threshold


def read_vectors(path: str | Path, wanted: Collection[str], *, threshold: float = 0.8) -> WordVectors:
    """Return the vectors of the wanted words from a text file with a word and its numbers to a line (GloVe, word2vec).

    Raises UserError for a line that is none, and where no wanted word has a vector.
    """
    found: dict[str, np.ndarray] = {}
    size = 0
    keep = set(wanted)
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                word, _, rest = line.rstrip().partition(" ")
                if word not in keep or (number == 1 and len(rest.split()) == 1):  # word2vec's head: count and size
                    continue
                vector = np.array(rest.split(), dtype=float)
                size = size or len(vector)
                if len(vector) != size or not np.isfinite(vector).all():
                    raise ValueError(f"{len(vector)} finite numbers were expected to be {size}")
                found[word] = vector
    except (OSError, ValueError) as error:
        where = f", line {number}" if not isinstance(error, OSError) else ""
        raise UserError(
            f"Word vectors in {path}{where}: {error}. Expected a word and its numbers on each line."
        ) from None
    if not found:
        raise UserError(f"{path} has a vector for none of the {len(keep)} words. Is it a list of English words?")
    return WordVectors(found, threshold)

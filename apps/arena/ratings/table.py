"""Votes as columns: what every rating is computed from.

Letters: N votes, m models, G voters, K covariates. Names live once in tuples; the columns hold their positions, so that
a million votes are thirty megabytes and every count is one `bincount`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from palate.errors import UserError, unknown
from palate.records import OUTCOMES

A, B, TIE, BOTH_BAD = range(4)
"""Codes of `VoteTable.outcome`: positions in `palate.records.OUTCOMES`."""

FLAGS: dict[str, int] = {"excluded": 1, "withdrawn": 2, "gold": 4, "known_identity": 8, "repeat": 16, "flagged": 32}
"""Why a vote does not count, as bits of `VoteTable.flags`: its voter was excluded; its voter took it back; the battle was
a check with a known answer; the voter could know who made the outputs; the voter had judged this battle before; another
check of quality set it apart."""

_CODES = {"model_a": "models", "model_b": "models", "voter": "voters", "prompt": "prompts", "category": "categories"}


@dataclass(frozen=True)
class VoteTable:
    """N votes as numpy columns of length N. Codes are positions in the tuples of names.

    model_a, model_b: codes of the models shown as A (left, first) and as B.
    outcome: A, B, TIE or BOTH_BAD.
    created: seconds since 1970; NaN where unknown.
    flags: bits of `FLAGS`; a vote counts where they are 0.
    covariates: names of K measures of an output, such as "megapixels" or "length".
    measures_a, measures_b: (N, K) measures of either output; NaN where unknown.
    """

    models: tuple[str, ...]
    voters: tuple[str, ...]
    prompts: tuple[str, ...]
    categories: tuple[str, ...]
    model_a: np.ndarray
    model_b: np.ndarray
    outcome: np.ndarray
    voter: np.ndarray
    prompt: np.ndarray
    category: np.ndarray
    created: np.ndarray
    flags: np.ndarray
    covariates: tuple[str, ...]
    measures_a: np.ndarray
    measures_b: np.ndarray

    def __post_init__(self) -> None:
        for name in ("model_a", "model_b", "outcome", "voter", "prompt", "category", "created", "flags"):
            if getattr(self, name).shape != (len(self),):
                raise UserError(f"Column {name} has shape {getattr(self, name).shape}; expected ({len(self)},).")
        for name, names in _CODES.items():
            _check_range(name, getattr(self, name), len(getattr(self, names)))
        _check_range("outcome", self.outcome, len(OUTCOMES))
        for name in ("measures_a", "measures_b"):
            if getattr(self, name).shape != (len(self), len(self.covariates)):
                raise UserError(
                    f"{name} has shape {getattr(self, name).shape}; expected ({len(self)}, {len(self.covariates)}): "
                    "a row per vote, a column per covariate."
                )
        itself = np.flatnonzero(self.model_a == self.model_b)
        if len(itself):
            raise UserError(
                f"{len(itself)} votes compare a model with itself, the first is vote {itself[0]} (counted from 0), "
                f"'{self.models[self.model_a[itself[0]]]}'. Leave them out."
            )

    def __len__(self) -> int:
        return len(self.outcome)

    @classmethod
    def of(
        cls,
        model_a: Sequence[str],
        model_b: Sequence[str],
        outcome: Sequence[str],
        voter: Sequence[str],
        *,
        prompt: Sequence[str] | None = None,
        category: Sequence[str] | None = None,
        created: Sequence[float] | None = None,
        flags: Sequence[int] | None = None,
        measures_a: Mapping[str, Sequence[float]] | None = None,
        measures_b: Mapping[str, Sequence[float]] | None = None,
    ) -> VoteTable:
        """Return the table of N votes given as columns of names. Names are sorted, so that codes do not depend on order."""
        n, left, right = len(outcome), measures_a or {}, measures_b or {}
        if set(left) != set(right):
            raise UserError(f"Both sides need the same measures; got {sorted(left)} and {sorted(right)}.")
        models, both = encode([*model_a, *model_b])
        voters, voter_codes = encode(voter)
        prompts, prompt_codes = encode(prompt if prompt is not None else [""] * n)
        categories, category_codes = encode(category if category is not None else [""] * n)
        return cls(
            models=models,
            voters=voters,
            prompts=prompts,
            categories=categories,
            model_a=both[: len(model_a)],
            model_b=both[len(model_a) :],
            outcome=outcome_codes(outcome),
            voter=voter_codes,
            prompt=prompt_codes,
            category=category_codes,
            created=np.full(n, math.nan) if created is None else np.asarray(created, dtype=float),
            flags=np.zeros(n, np.uint8) if flags is None else np.asarray(flags, dtype=np.uint8),
            covariates=tuple(sorted(left)),
            measures_a=_matrix(left, n),
            measures_b=_matrix(right, n),
        )

    def take(self, rows: np.ndarray) -> VoteTable:
        """Return the votes that `rows` (a mask or positions) chooses. Names are kept, also those without a vote."""
        columns = {
            name: getattr(self, name)[rows]
            for name in (*_CODES, "outcome", "created", "flags", "measures_a", "measures_b")
        }
        return replace(self, **columns)

    def counted(self) -> VoteTable:
        """Return the votes without a flag."""
        return self.take(self.flags == 0) if self.flags.any() else self

    def left_out(self) -> dict[str, int]:
        """Return flag -> votes that carry it; one vote may carry several. Flags that no vote carries are absent."""
        found = {name: int(np.count_nonzero(self.flags & bit)) for name, bit in FLAGS.items()}
        return {name: count for name, count in found.items() if count}

    def canonical(self) -> VoteTable:
        """Return the same votes as any log of them gives them: rows by time, names sorted, voters numbered by their first
        vote, as an export may know them by other names. Votes of one time and content keep the order that they have."""
        changed: dict[str, object] = {}
        for names in ("models", "prompts", "categories"):
            known: tuple[str, ...] = getattr(self, names)
            place, changed[names] = _sorted_places(known)
            for column in (column for column, of in _CODES.items() if of == names):
                changed[column] = place[getattr(self, column)]
        if self.covariates != tuple(sorted(self.covariates)):
            order = np.argsort(_sorted_places(self.covariates)[0])
            changed["covariates"] = tuple(self.covariates[i] for i in order)
            changed.update({side: getattr(self, side)[:, order] for side in ("measures_a", "measures_b")})
        ordered = replace(self, **changed).in_order()  # type: ignore[arg-type]
        first = np.full(len(self.voters), len(ordered), dtype=np.int64)
        first[ordered.voter[::-1]] = np.arange(len(ordered))[::-1]  # the last assignment is the first vote
        order = np.argsort(first, kind="stable")
        number = np.empty(len(order), dtype=np.int32)
        number[order] = np.arange(len(order), dtype=np.int32)
        return replace(ordered, voter=number[ordered.voter], voters=tuple(self.voters[i] for i in order))

    def in_order(self) -> VoteTable:
        """Return the votes in order of time, those of unknown time last; equal times by all but the voter."""
        created = np.nan_to_num(self.created, nan=math.inf)
        if np.all(created[1:] > created[:-1]):
            return self
        order = np.argsort(created, kind="stable")
        same = created[order][1:] == created[order][:-1]
        tied = np.concatenate([same, [False]]) | np.concatenate([[False], same])
        rows = order[tied]
        content = (self.category, self.prompt, self.outcome, self.model_b, self.model_a, created)
        keys = (*self.measures_b.T, *self.measures_a.T, self.flags, *content)
        order[tied] = rows[np.lexsort([key[rows] for key in keys])]
        return self.take(order)

    def swap(self) -> VoteTable:
        """Return the same judgements with sides exchanged, the outcomes flipped along."""
        flipped = np.array([B, A, TIE, BOTH_BAD], dtype=self.outcome.dtype)
        return replace(
            self,
            model_a=self.model_b,
            model_b=self.model_a,
            outcome=flipped[self.outcome],
            measures_a=self.measures_b,
            measures_b=self.measures_a,
        )


class VoteLog:
    """A table that grows: one `append` per vote, `set_flags` for what is learnt later, `table()` to read.

    Not safe for threads; one writer owns it.
    """

    def __init__(self, covariates: Sequence[str] = ()) -> None:
        self._covariates = tuple(covariates)
        self._names: dict[str, dict[str, int]] = {names: {} for names in dict.fromkeys(_CODES.values())}
        self._n = 0
        self._columns: dict[str, np.ndarray] = {
            **{name: np.empty(64, np.int32) for name in _CODES},
            "outcome": np.empty(64, np.int8),
            "created": np.empty(64),
            "flags": np.empty(64, np.uint8),
            "measures_a": np.empty((64, len(self._covariates))),
            "measures_b": np.empty((64, len(self._covariates))),
        }

    def __len__(self) -> int:
        return self._n

    def append(
        self,
        *,
        model_a: str,
        model_b: str,
        outcome: str,
        voter: str,
        prompt: str = "",
        category: str = "",
        created: str | float | datetime | None = None,
        flags: Collection[str] = (),
        measures_a: Mapping[str, float] | None = None,
        measures_b: Mapping[str, float] | None = None,
    ) -> int:
        """Add a vote and return its row. Measures that were not announced are ignored; missing ones are NaN."""
        if model_a == model_b:
            raise UserError(f"A vote compares two models; got '{model_a}' on both sides.")
        values: dict[str, object] = {
            "outcome": _outcome(outcome),
            "created": seconds(created),
            "flags": flag_bits(flags),
        }
        for side, given in (("measures_a", measures_a), ("measures_b", measures_b)):
            values[side] = [(given or {}).get(name, math.nan) for name in self._covariates]
        for name, text in zip(_CODES, (model_a, model_b, voter, prompt, category), strict=True):
            known = self._names[_CODES[name]]
            values[name] = known.setdefault(text, len(known))
        if self._n == len(self._columns["outcome"]):
            self._columns = {name: np.concatenate([c, np.empty_like(c)]) for name, c in self._columns.items()}
        for name, value in values.items():
            self._columns[name][self._n] = value
        self._n += 1
        return self._n - 1

    def add_covariate(self, name: str) -> None:
        """Let votes have one more measure, unknown so far; nothing happens if they have it."""
        if name in self._covariates:
            return
        self._covariates = (*self._covariates, name)
        for side in ("measures_a", "measures_b"):
            column = np.full((len(self._columns[side]), 1), math.nan)
            self._columns[side] = np.concatenate([self._columns[side], column], axis=1)

    def set_flags(self, row: int, flags: Collection[str]) -> None:
        """Replace a vote's flags; none lets it count again."""
        if not 0 <= row < self._n:
            raise UserError(f"There is no row {row}: the log has {self._n} votes.")
        self._columns["flags"][row] = flag_bits(flags)

    def table(self) -> VoteTable:
        """Return the votes so far. Later votes do not change it."""
        names = {key: tuple(known) for key, known in self._names.items()}
        columns = {name: column[: self._n].copy() for name, column in self._columns.items()}
        return VoteTable(**names, **columns, covariates=self._covariates)  # type: ignore[arg-type]


def _sorted_places(names: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return where each name stands when they are sorted, and the sorted names."""
    order = sorted(range(len(names)), key=names.__getitem__)
    place = np.empty(len(names), dtype=np.int32)
    place[order] = np.arange(len(names), dtype=np.int32)
    return place, tuple(names[i] for i in order)


def encode(values: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the distinct names, sorted, and the position of each value among them, (N,) int32."""
    seen: dict[str, int] = {}
    codes = np.fromiter((seen.setdefault(v, len(seen)) for v in values), dtype=np.int32, count=len(values))
    place, names = _sorted_places(tuple(seen))
    return names, place[codes]


def outcome_codes(values: Sequence[str]) -> np.ndarray:
    """Return the code of each outcome, (N,) int8."""
    return np.fromiter((_outcome(v) for v in values), dtype=np.int8, count=len(values))


def flag_bits(flags: Collection[str]) -> int:
    """Return the bits of the named flags."""
    bits = 0
    for flag in [flags] if isinstance(flags, str) else flags:
        if flag not in FLAGS:
            raise UserError(unknown("flag of a vote", str(flag), FLAGS))
        bits |= FLAGS[flag]
    return bits


def seconds(moment: str | float | datetime | None) -> float:
    """Return seconds since 1970 for ISO 8601 text (without a zone: UTC), a datetime or seconds; NaN for None and ""."""
    if moment is None or moment == "":
        return math.nan
    if isinstance(moment, (int, float)):
        return float(moment)
    try:
        when = moment if isinstance(moment, datetime) else datetime.fromisoformat(moment)
    except ValueError:
        raise UserError(f"A vote's time is ISO 8601, such as 2026-01-31T12:00:00Z; got {moment!r}.") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


_OUTCOME_CODES: dict[str, int] = {name: code for code, name in enumerate(OUTCOMES)}


def _outcome(name: str) -> int:
    try:
        return _OUTCOME_CODES[name]
    except KeyError:
        raise UserError(unknown("vote outcome", str(name), OUTCOMES)) from None


def _matrix(columns: Mapping[str, Sequence[float]], n: int) -> np.ndarray:
    if not columns:
        return np.empty((n, 0))
    return np.column_stack([np.asarray(columns[name], dtype=float) for name in sorted(columns)])


def _check_range(name: str, codes: np.ndarray, size: int) -> None:
    if len(codes) and not (codes.min() >= 0 and codes.max() < size):
        raise UserError(f"Column {name} holds {codes.min()} to {codes.max()}; expected codes from 0 to {size - 1}.")

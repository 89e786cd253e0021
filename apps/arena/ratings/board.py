"""The board: everything that the page of results shows, from votes alone.

    board(read_log("votes.jsonl")).as_dict()

The same votes give the same board in any order, on the server and from the exported log, which knows voters by other names:
`VoteTable.canonical` settles all orders, and all draws are keyed. A million votes on 20 models take well under a second, so
a live board is this function, called in a thread of its own on `VoteLog.table()`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.arena.ratings.davidson import Ties, check_ties
from apps.arena.ratings.robustness import Concentration, concentration, side_bias
from apps.arena.ratings.section import Section, section
from apps.arena.ratings.solve import SIDE, Settings
from apps.arena.ratings.table import VoteTable
from palate.errors import UserError, unknown
from palate.statistics import Estimate

ALL = "all"
GROWTH_POINTS = 120


@dataclass(frozen=True)
class Board:
    """All results. `overall` is the table of all votes that count, `categories` one table per category with votes.

    total: votes in the log. left_out: flag -> votes with it (`table.FLAGS`). side_bias: share of votes with a winner that
    side A won. growth: (seconds since 1970, votes that count so far). latest: time of the last vote; None if unknown.
    """

    title: str
    settings: Settings
    total: int
    counted: int
    left_out: dict[str, int]
    prompts: int
    overall: Section
    categories: dict[str, Section]
    concentration: Concentration
    side_bias: Estimate
    growth: list[tuple[float, int]]
    latest: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the board for JSON; numbers that are not finite become None."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def board(
    votes: VoteTable,
    *,
    ties: Ties = "davidson",
    level: float = 0.95,
    alpha: float = 0.05,
    control: Sequence[str] = (),
    bootstraps: int = 1000,
    seed: int = 0,
    categories: bool = True,
    title: str = "Arena",
) -> Board:
    """Return the board of all votes without a flag.

    ties: "davidson" estimates how likely ties are, "half" gives each side half a win (Bradley-Terry).
    level: probability of every interval. alpha: error of the test of one pair, however often it is read.
    control: measures to hold equal (and the side with them), "side" alone, or "all".
    bootstraps: resampled boards, for the table of all votes; 0 for none.
    """
    check_ties(ties)
    for name, value in (("level", level), ("alpha", alpha)):
        if not 0 < value < 1:
            raise UserError(f"{name} lies between 0 and 1; got {value}.")
    if bootstraps < 0:
        raise UserError(f"bootstraps is a number of resamples, 0 for none; got {bootstraps}.")
    settings = Settings(ties, level, alpha, _measures(votes, control), bootstraps, seed)
    left_out = votes.left_out()
    counted = votes.counted().canonical()
    created = counted.created[np.isfinite(counted.created)]
    sections = {}
    if categories and np.any(counted.category != counted.category[:1]):
        for code in np.unique(counted.category):
            name = counted.categories[code] or "no category"
            chosen = counted.take(counted.category == code)
            sections[name] = section(f"category {name}", chosen, settings, resample=False, flips=False)
    return Board(
        title=title,
        settings=settings,
        total=len(votes),
        counted=len(counted),
        left_out=left_out,
        prompts=int(np.count_nonzero(np.bincount(counted.prompt, minlength=1))),
        overall=section(ALL, counted, settings),
        categories={name: dataclasses.replace(found, name=name) for name, found in sections.items()},
        concentration=concentration(counted),
        side_bias=side_bias(counted, level),
        growth=growth(created),
        latest=float(created.max()) if len(created) else None,
    )


def growth(created: np.ndarray) -> list[tuple[float, int]]:
    """Return (time, votes so far) at up to 120 evenly spaced times from the first vote to the last."""
    if not len(created):
        return []
    first, last = float(created.min()), float(created.max())
    if first == last:
        return [(first, len(created))]
    counts, edges = np.histogram(created, bins=min(GROWTH_POINTS, len(created)), range=(first, last))
    return [(first, 0), *zip(edges[1:].tolist(), np.cumsum(counts).tolist(), strict=True)]


def _measures(votes: VoteTable, control: Sequence[str]) -> tuple[str, ...]:
    names = [control] if isinstance(control, str) else list(control)
    if names == [ALL]:
        return (SIDE, *votes.covariates)
    for name in names:
        if name not in (SIDE, *votes.covariates):
            raise UserError(unknown("measure to control", name, (ALL, SIDE, *votes.covariates)))
    return tuple(dict.fromkeys(names))


def plain(value: Any) -> Any:
    """Return a board or a part of it for JSON: numbers that are not finite become None."""
    if isinstance(value, Estimate):
        return value.as_dict()
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

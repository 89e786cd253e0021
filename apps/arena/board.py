"""The live board: a thread reads what is new in the log, keeps standings for matchmaking, and computes the ratings.

The board of all votes is computed whenever votes came; one of a category, or with the side held equal, when somebody asks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Engine, func, select

from apps.arena.errors import Refused
from apps.arena.ratings.table import VoteTable
from apps.arena.ratings.tally import Standing, Tally
from apps.arena.settings import ArenaSettings
from apps.arena.store import events
from apps.arena.store.catalog import Catalog, load, version
from apps.arena.store.events import iso
from apps.arena.store.ledger import Ledger
from apps.arena.store.schema import events as event_table
from apps.arena.voting import consent
from apps.arena.voting.consent import Consent
from apps.arena.voting.limits import DAY

OVERLAP = 2000
"""Numbers that are looked at again: on a server, a smaller one can be committed after a larger one."""
POLL_SECONDS = 1.0
ASKED_MS = 5 * 60_000
"""For how long after somebody asked a board is kept up to date."""
CONTROLS = ("side",)
"""What a reader of the live board can hold equal. The exported log has measures of the outputs besides."""


@dataclass(frozen=True)
class View:
    """What the choice of a battle needs, as of one moment; its parts belong together."""

    catalog: Catalog
    standing: Standing
    full: frozenset[str]
    """Models that have reached their daily cap."""
    day: int
    """Days since 1970."""
    consent: Consent | None
    """The text that voters must agree to."""


@dataclass(frozen=True)
class Choice:
    """Which votes a board is of, all or a category's, and what it holds equal, a name of CONTROLS or nothing."""

    category: str | None = None
    control: str | None = None


@dataclass(frozen=True)
class Shown:
    """A computed board."""

    computed: int
    votes: int
    board: dict[str, Any]
    stamp: tuple[int, int]
    """Up to where it has read the log."""


ALL = Choice()


class BoardKeeper:
    """Holds the current `view` and the computed boards, and refreshes them in a thread of its own."""

    def __init__(self, engine: Engine, settings: ArenaSettings, clock: Callable[[], int]) -> None:
        self._engine, self._settings, self._clock = engine, settings, clock
        self._ledger, self._seen, self._last, self._erased = Ledger(), set[int](), 0, 0
        self._lock, self._stop = threading.RLock(), threading.Event()
        self._shown: dict[Choice, Shown] = {}
        self._asked: dict[Choice, int] = {}
        self._asking = threading.Event()
        self.refresh()
        self._thread = threading.Thread(target=self._work, name="arena-board", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._asking.set()
        self._thread.join()

    def refresh(self) -> None:
        """Read what is new; afterwards `view` knows it."""
        with self._lock:
            news = self._read_events()
            with self._engine.connect() as connection:
                current = getattr(self, "view", None)
                number = version(connection)
                day, text = self._clock() // DAY, consent.current(connection)
                if (
                    current is None
                    or news
                    or (current.catalog.version, current.day, current.consent) != (number, day, text)
                ):
                    catalog = current.catalog if current and current.catalog.version == number else load(connection)
                    table = self._ledger.table()
                    self.view = View(catalog, standing_of(catalog, table), self._full(table, day), day, text)

    def compute(self, choice: Choice = ALL) -> None:
        """Compute a board from the votes so far."""
        from apps.arena.ratings.board import board

        with self._lock:
            table, stamp = self._ledger.table(), self._stamp()
        if choice.category is not None:
            table = table.take(
                np.array([name == choice.category for name in table.categories], dtype=bool)[table.category]
            )
        control = () if choice.control is None else (choice.control,)
        made = board(table, bootstraps=self._settings.bootstraps, control=control, categories=choice.category is None)
        self._shown[choice] = Shown(self._clock(), len(table.counted()), made.as_dict(), stamp)

    def answer(self, category: str | None = None, control: str | None = None) -> dict[str, Any]:
        """Return the board as `GET /api/board` describes it; `computed` is None until it has been computed."""
        choice = self._checked(category, control)
        shown = self._shown.get(choice)
        self._asked[choice] = self._clock()
        if shown is None:
            self._asking.set()
            return {"computed": None, "votes": 0, "board": {}}
        return {"computed": iso(shown.computed), "votes": shown.votes, "board": shown.board}

    def categories(self) -> tuple[str, ...]:
        """Return the categories that have votes or prompts, by name."""
        shown = self._shown.get(ALL)
        return tuple(sorted({*self.view.catalog.categories, *(shown.board["categories"] if shown else ())}))

    def flagged(self) -> dict[str, list[str]]:
        """Return voter -> why their votes are set apart."""
        with self._lock:
            return self._ledger.flagged()

    def _checked(self, category: str | None, control: str | None) -> Choice:
        choice = Choice(category or None, control or None)
        if choice.category is not None and choice.category not in self.categories():
            raise Refused("invalid", f"There is no category '{choice.category}'.", categories=list(self.categories()))
        if choice.control is not None and choice.control not in CONTROLS:
            raise Refused("invalid", f"Only {', '.join(CONTROLS)} can be held equal here; got '{choice.control}'.")
        return choice

    def _work(self) -> None:
        due = 0
        while not self._stop.is_set():
            self._asking.wait(POLL_SECONDS)
            self._asking.clear()
            now = self._clock()
            try:
                self.refresh()
                stale = [choice for choice in self._wanted(now) if self._is_stale(choice)]
                for choice in stale if now >= due else [choice for choice in stale if choice not in self._shown]:
                    if self._stop.is_set():
                        return
                    self.compute(choice)
                if stale and now >= due:
                    due = self._clock() + max(self._settings.board_seconds * 1000, 5 * (self._clock() - now))
            except Exception:  # a lost database: voting says so itself, and the board waits for it
                logging.getLogger("palate.arena").exception("The board was not refreshed.")

    def _wanted(self, now: int) -> list[Choice]:
        """Return the boards to be kept up to date; those that nobody asks for any more are dropped."""
        for choice in [c for c, when in list(self._asked.items()) if now - when > ASKED_MS and c != ALL]:
            self._asked.pop(choice, None)
            self._shown.pop(choice, None)
        return [ALL, *(choice for choice in list(self._asked) if choice != ALL)]

    def _is_stale(self, choice: Choice) -> bool:
        shown = self._shown.get(choice)
        return shown is None or shown.stamp != self._stamp()

    def _stamp(self) -> tuple[int, int]:
        return len(self._ledger), self._last

    def _read_events(self) -> bool:
        with self._engine.connect() as connection:
            erased = connection.execute(
                select(func.count()).select_from(event_table).where(event_table.c.kind == "erase")
            ).scalar_one()
            if erased != self._erased:  # a voter's events are gone: begin anew
                self._ledger, self._seen, self._last, self._erased = Ledger(), set(), 0, erased
            since = self._last - (0 if connection.dialect.name == "sqlite" else OVERLAP)
            numbers = set(connection.scalars(select(event_table.c.id).where(event_table.c.id > since))) - self._seen
            first = min(numbers, default=0)
            fresh = [event for event in events.read(connection, first - 1) if event["id"] in numbers] if numbers else []
        for event in fresh:
            self._ledger.apply(event)
            self._seen.add(event["id"])
        self._ledger.settle()
        if fresh:
            self._last = max(self._last, fresh[-1]["id"])
            self._seen = {number for number in self._seen if number > self._last - OVERLAP}
        return bool(fresh)

    def _full(self, table: VoteTable, day: int) -> frozenset[str]:
        rows = table.created >= day * DAY / 1000
        counts = np.bincount(np.concatenate([table.model_a[rows], table.model_b[rows]]), minlength=len(table.models))
        return frozenset(
            name for name, n in zip(table.models, counts) if n >= self._settings.limits.model_votes_per_day
        )


def standing_of(catalog: Catalog, votes: VoteTable) -> Standing:
    """Return where the catalogue's models stand, in its order; models that are no longer shown still inform it."""
    tally = Tally.of(votes)
    for name in catalog.names:
        tally.add_model(name)
    if not tally.models:
        return Standing((), np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0)))
    whole = tally.standing()
    at = np.array([whole.models.index(name) for name in catalog.names], dtype=int)
    grid = np.ix_(at, at)
    return Standing(catalog.names, whole.theta[at], whole.covariance[grid], whole.battles[grid])

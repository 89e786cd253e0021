"""The event log folded into votes with the reasons why some do not count. The live board and the export read the same fold.

A vote that is taken back stays, flagged "withdrawn"; a voter who is forgotten is gone from the log itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apps.arena.ratings.table import VoteLog, VoteTable
from apps.arena.voting.quality import Judged, reasons_to_flag


@dataclass(slots=True)
class Entry:
    """One vote of the log."""

    row: int
    event: Mapping[str, Any]
    withdrawn: bool = False
    flags: tuple[str, ...] = ()


class Ledger:
    """Votes with flags. `apply` takes events in any order of batches, each event once; `table` is what ratings read."""

    def __init__(self) -> None:
        self._log = VoteLog()
        self._standing: dict[str, Entry] = {}
        self._entries: list[Entry] = []
        self._by: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        self._excluded: set[tuple[str, str]] = set()
        self._flagged: dict[str, list[str]] = {}
        self._dirty: set[str] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take one event of the log, as `apps.arena.store.events.read` yields it."""
        kind = event["kind"]
        if kind == "vote":
            self._vote(event)
        elif kind == "withdraw":
            entry = self._standing.pop(event["battle"])
            entry.withdrawn = True
            self._dirty.add(event["voter"])
            self._set_flags(entry)
        elif kind in ("exclude", "include"):
            target = (event["what"], event["target"])
            self._excluded.add(target) if kind == "exclude" else self._excluded.discard(target)
            for entry in self._by[target]:
                self._set_flags(entry)

    def settle(self) -> None:
        """Judge again the voters of whom there was news. Call after a batch of events."""
        for voter in self._dirty:
            entries = self._by["voter", voter]
            judged = [
                Judged(_millis(entry.event["at"]), entry.event["outcome"], entry.event.get("better"))
                for entry in entries
                if not entry.withdrawn
            ]
            before, after = self._flagged.get(voter, []), reasons_to_flag(judged)
            self._flagged[voter] = after
            for entry in entries if bool(before) != bool(after) else []:
                self._set_flags(entry)
        self._dirty.clear()

    def flagged(self) -> dict[str, list[str]]:
        """Return voter -> why their votes are set apart."""
        return {voter: reasons for voter, reasons in self._flagged.items() if reasons}

    def table(self) -> VoteTable:
        """Return all votes with their flags."""
        return self._log.table()

    def entries(self) -> Iterator[Entry]:
        """Yield every vote in the order of the log, withdrawn ones included."""
        yield from self._entries

    def counted(self) -> Iterator[Entry]:
        """Yield the votes without a flag."""
        return (entry for entry in self._entries if not entry.flags)

    def _vote(self, event: Mapping[str, Any]) -> None:
        row = (
            self._log.append(
                model_a=event["model_a"],
                model_b=event["model_b"],
                outcome=event["outcome"],
                voter=event["voter"],
                prompt=event["prompt"],
                category=event["category"],
                created=event["at"],
            )
            if event["model_a"] != event["model_b"]
            else -1
        )  # a gold battle has one model on both sides
        entry = Entry(row, event)
        self._entries.append(entry)
        self._standing[event["battle"]] = entry
        for what in ("voter", "battle", "prompt"):
            self._by[what, event[what]].append(entry)
        self._dirty.add(event["voter"])
        self._set_flags(entry)

    def _set_flags(self, entry: Entry) -> None:
        event = entry.event
        excluded = any((what, event[what]) in self._excluded for what in ("voter", "battle", "prompt"))
        reasons = {
            "excluded": excluded,
            "withdrawn": entry.withdrawn,
            "gold": event["shown"] == "gold",
            "known_identity": event["known"],
            "repeat": event["shown"] == "repeat",
            "flagged": bool(self._flagged.get(event["voter"])),
        }
        flags = tuple(name for name, holds in reasons.items() if holds)
        if flags != entry.flags:
            entry.flags = flags
            if entry.row >= 0:
                self._log.set_flags(entry.row, flags)


def _millis(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)

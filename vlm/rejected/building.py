"""True answers -> pairs with rejected ones: resumable, every row kept as it is made, failures counted with their reasons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from palate.checking import digest
from palate.conversations import AnswerPair, Exchange
from palate.errors import UserError
from palate.kept import FAILURE, KEY, KeptRows
from palate.readers.writing import write_answer_pairs
from palate.statistics import Estimate, mean_interval
from vlm.evaluate.words import length

_UNFIT = "unfit"
_AT_ONCE = 256  # exchanges handed to a builder: bounds what is in memory, and keeps an endpoint's workers busy


@dataclass(frozen=True)
class Made:
    """A rejected answer and what was done to make it, as JSON can hold it; or why there is none.

    failure: what went wrong, such as an image or an endpoint out of reach; the next run tries again.
    unfit: why what was made cannot be used; the next run would make the same, so it is not asked again.
    """

    rejected: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""
    unfit: str = ""


class Exchanges(Protocol):
    """True answers by number, as `open_exchanges` gives them; a row that cannot be read raises UserError."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Exchange: ...


class Builder(Protocol):
    """Makes rejected answers."""

    @property
    def method(self) -> str:
        """Its name in METHODS."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes what it makes, as JSON can hold it."""
        ...

    def build(self, exchanges: Sequence[Exchange]) -> Iterator[tuple[int, Made]]:
        """Yield (number of the exchange, what was made), each once, in any order."""
        ...


@dataclass(frozen=True)
class Built:
    """What a run made. `failures` is reason -> how many; the lengths are in words, over the pairs."""

    pairs: int
    failures: Mapping[str, int]
    chosen_length: Estimate
    rejected_length: Estimate
    words_changed: Estimate

    def __str__(self) -> str:
        """Return the report of the command line."""
        lines = [
            f"{self.pairs} pairs",
            f"words: chosen {self.chosen_length}, rejected {self.rejected_length}, changed {self.words_changed}",
        ]
        lines += [f"{count} failed: {reason}" for reason, count in self.failures.items()]
        return "\n".join(lines)


def build_pairs(builder: Builder, exchanges: Exchanges, out: str | Path, *, progress: str | None = None) -> Built:
    """Make a rejected answer for every exchange, write the pairs to `out` as `write_answer_pairs` does, and say how it went.

    What was made lies in OUT.rows.jsonl under a key of exchange and settings: a run that was killed goes on there, and a
    changed setting makes all anew. Raises UserError where no pair came about.
    """
    out = Path(out)
    keys, failures = _keys(exchanges, builder)
    with KeptRows(out.with_name(f"{out.name}.rows.jsonl")).open() as kept:
        todo = list({key: number for number, key in keys.items() if key not in kept.rows}.values())
        with tqdm(total=len(keys), initial=len(keys) - len(todo), desc=progress, disable=progress is None) as bar:
            for begin in range(0, len(todo), _AT_ONCE):
                numbers = todo[begin : begin + _AT_ONCE]
                some = [exchanges[number] for number in numbers]
                for place, made in builder.build(some):
                    kept.add(_row(keys[numbers[place]], some[place], made))
                    bar.update()
        rows = {number: kept.rows[key] for number, key in keys.items()}
    failures.update(why for row in rows.values() if (why := row.get(FAILURE) or row.get(_UNFIT)))
    if failures.total() == len(exchanges):
        reasons = " ".join(f"{count} failed: {why}." for why, count in failures.most_common(5))
        raise UserError(f"Nothing was built. {reasons}")
    sizes: list[tuple[int, int, int]] = []

    def pairs() -> Iterator[AnswerPair]:
        for number, row in rows.items():
            if "rejected" in row:
                pair = _pair(exchanges[number], row, builder)
                sizes.append((length(pair.chosen), length(pair.rejected), row["made"]["words_changed"]))
                yield pair

    count = write_answer_pairs(pairs(), out)
    chosen, rejected, changed = (mean_interval(column) for column in zip(*sizes, strict=True))
    return Built(count, dict(failures.most_common()), chosen, rejected, changed)


def words_changed(chosen: str, rejected: str) -> int:
    """Return how many words of the rejected answer are not those of the chosen one, by a longest-matching-block diff."""
    was, now = chosen.split(), rejected.split()
    blocks = SequenceMatcher(None, was, now, autojunk=False).get_matching_blocks()
    return len(now) - sum(block.size for block in blocks)


def _pair(exchange: Exchange, row: Mapping[str, Any], builder: Builder) -> AnswerPair:
    made = {"method": builder.method, **builder.settings, **row["made"]}
    return exchange.against(row["rejected"], made, source="+".join(filter(None, (exchange.source, builder.method))))


def _row(key: str, exchange: Exchange, made: Made) -> dict[str, Any]:
    if made.failure:
        return {KEY: key, FAILURE: made.failure}
    unfit = made.unfit
    if not unfit and not made.rejected.strip():
        unfit = "the rejected answer is empty"
    if not unfit and made.rejected.split() == exchange.answer.split():
        unfit = "the rejected answer is the true one"
    if unfit:
        return {KEY: key, _UNFIT: unfit}
    details = {**made.details, "words_changed": words_changed(exchange.answer, made.rejected)}
    return {KEY: key, "rejected": made.rejected, "made": details}


def _keys(exchanges: Exchanges, builder: Builder) -> tuple[dict[int, str], Counter[str]]:
    """Return the key of each exchange that can be read, by its number, and why others cannot."""
    settings = json.dumps(builder.settings, sort_keys=True)
    keys, broken = {}, Counter[str]()
    for number in range(len(exchanges)):
        try:
            keys[number] = digest([exchanges[number].id, settings])
        except UserError as error:
            broken[str(error)] += 1
    return keys, broken

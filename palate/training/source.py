"""The records of a run: opened, split into training and held-out ones, and named for checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import torch

from palate.errors import UserError
from palate.objectives import rows_without
from palate.randomness import uniform
from palate.readers import BadRow
from palate.readers.reader import Record
from palate.readers.reading import RecordDataset, RecordStream
from palate.training.order import Place
from palate.training.settings import PairDataConfig

if TYPE_CHECKING:
    from PIL import Image


class Subset(Generic[Record]):
    """Some records of a dataset. Where bad rows are skipped, the next good record of the subset stands in for one."""

    def __init__(self, dataset: RecordDataset[Record], indices: list[int]) -> None:
        self.dataset, self.indices = dataset, indices
        self.skipped = torch.zeros(1, dtype=torch.long).share_memory_()  # counts in the data workers too

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Record, list[Image.Image]]:
        """Return a record and its pictures."""
        for shift in range(len(self)):
            try:
                return self.dataset.read(self.indices[(index + shift) % len(self)])
            except BadRow as error:
                if self.dataset.on_bad_row == "error":
                    raise UserError(f"{error} Or leave such rows out with --data.on_bad_row skip.") from None
                self.skipped += 1
        raise UserError("No row of the data can be read.")


class RecordSource(Generic[Record]):
    """Training and held-out records, as a `PairDataConfig` says. Records of one group are in one of the two only."""

    config: PairDataConfig
    group_noun = "prompts"

    def __init__(self, config: PairDataConfig, listed: RecordDataset[Record] | None = None) -> None:
        """listed: the records of a stream, where they are known already; they are then divided as those of a table are."""
        self.config = config
        self.training: Subset[Record] | None = None
        self.held_out: Subset[Record] | None = None
        self.shared = 0
        self.streamed: RecordStream[Record] | None = None
        if listed is not None or not config.streaming:
            dataset = self.open(config.path, config.limit) if listed is None else listed
            kept, held = self._divide(dataset)
            self.training = self.subset(dataset, kept)
            self.held_out = self.subset(dataset, held) if held else None
        if config.held_out_path:
            others = self.open(config.held_out_path, config.held_out_limit)
            self.held_out = self.subset(others, list(range(len(others))))
            if self.training is not None:
                self.shared = len(set(self.groups(others)) & set(self.groups(self.training.dataset)))

    # --- what a kind of record says ------------------------------------------------------------------------------

    def open(self, path: str, limit: int) -> RecordDataset[Record]:
        """Return the records at a path; a limit of 0 is none."""
        raise NotImplementedError

    def open_stream(self) -> RecordStream[Record]:
        """Return the training records in order."""
        raise NotImplementedError

    def groups(self, dataset: RecordDataset[Record]) -> list[str]:
        """Return a key of each record; records of one key are not parted by the split."""
        raise NotImplementedError

    def contents(self, dataset: RecordDataset[Record]) -> list[str]:
        """Return what each record says, for a hash of the data."""
        raise NotImplementedError

    def check_row(self, row: int, record: Record, needs: frozenset[str]) -> None:
        """Raise UserError where a streamed record lacks what the run needs."""
        raise NotImplementedError

    def subset(self, dataset: RecordDataset[Record], indices: list[int]) -> Subset[Record]:
        return Subset(dataset, indices)

    # --- what all share --------------------------------------------------------------------------------------------

    def options(self, limit: int) -> dict[str, Any]:
        """Return the options of the readers."""
        config = self.config
        how: dict[str, Any] = {"format": config.format, "split": config.split, "ties": config.ties}
        return {**how, "on_bad_row": config.on_bad_row, "limit": limit or None}

    def data_available(self) -> dict[str, bool | str]:
        """Say of what an objective may need from the data whether they have it (see `palate.objectives.build`)."""
        have: dict[str, bool | str] = {"score_gap": True, "batch_stats": True, "ranking": True}  # of two
        if self.training is not None:
            dataset = self.training.dataset
            have["score_gap"] = rows_without(dataset.column_missing("score_gap"), len(dataset))
            have["soft_labels"] = dataset.has_soft_labels()
        return have

    def identity(self, *names: str) -> dict[str, Any]:
        """Return what makes the training records these records: for a table, a hash of what they say.

        names: further settings that do.
        """
        config = self.config
        also = {name: getattr(config, name) for name in names}
        if self.training is None:
            own = ("path", "format", "split", "limit", "ties")
            return {**{name: getattr(config, name) for name in own}, **also}
        dataset, digest = self.training.dataset, blake2b(digest_size=16)
        contents, p_chosen = self.contents(dataset), dataset.p_chosen
        for index in self.training.indices:
            digest.update(f"{contents[index]}\x1f{p_chosen[index]}\x1e".encode(errors="surrogatepass"))
        local = Path(config.path)
        path = str(local.resolve()) if local.exists() else config.path
        return {"path": path, "pairs": digest.hexdigest(), **also}

    def stream(
        self, place: Place, *, needs: frozenset[str]
    ) -> Iterator[tuple[Place, tuple[tuple[Record, list[Image.Image]], int]]]:
        """Yield `(place after, ((record, pictures), visit))` without end, in the stream's order."""
        stream = self.streamed = self.open_stream()
        position, visit = place["position"], place.get("visit", 0)
        stream.load_state_dict(place.get("at", {"row": 0, "pairs": 0}))
        while True:
            before = position
            for row, record, pictures in stream.read():
                self.check_row(row, record, needs)
                position += 1
                after = {"position": position, "visit": visit, "at": dict(stream.state_dict())}
                yield after, ((record, pictures), visit)
            if position == before and place.get("at") is None:
                raise UserError(f"There is no usable {stream.noun}. {stream.summary()}")
            place, visit = {}, visit + 1
            stream.load_state_dict({"row": 0, "pairs": 0})

    def summary(self) -> str:
        """Return a line on the records used and left out."""
        if self.training is None:
            if self.streamed is None:  # not begun, or read by a data worker, which keeps the count
                return f"{self.config.path}: streamed."
            return f"{self.streamed.summary()} Of the pass that was under way."
        held = len(self.held_out) if self.held_out else 0
        lines = [f"{self.training.dataset.summary()} Training on {len(self.training):,}, held out {held:,}."]
        if self.config.held_out and not held:
            lines.append(
                f"Careful: --data.held_out {self.config.held_out:g} of these {self.group_noun} is none within "
                f"--data.held_out_limit {self.config.held_out_limit}, or all records share one, so that nothing is measured"
                ": raise one of them, or give --data.held_out_path."
            )
        if self.shared:
            lines.append(
                f"Careful: {self.shared:,} {self.group_noun} of {self.config.held_out_path} are trained on too."
            )
        skipped = int(self.training.skipped) + (int(self.held_out.skipped) if self.held_out else 0)
        if skipped:
            noun = self.training.dataset.noun
            lines.append(f"Unreadable images met and replaced by the next {noun}: {skipped:,} times on this process.")
        return "\n".join(lines)

    def _divide(self, dataset: RecordDataset[Record]) -> tuple[list[int], list[int]]:
        """Divide by a hash of the group, the same for every seed, so that runs can be compared.

        Groups are held out whole, in the order of their hashes, until their share or the limit of pairs is reached.
        """
        if self.config.held_out_path:
            return list(range(len(dataset))), []
        by_group: dict[str, list[int]] = {}
        for index, group in enumerate(self.groups(dataset)):
            by_group.setdefault(group, []).append(index)
        places = {group: uniform(0, group, 0, "held out") for group in by_group}
        held: list[int] = []
        for group in sorted(by_group, key=places.__getitem__):
            full = len(held) + len(by_group[group]) > self.config.held_out_limit
            if places[group] >= self.config.held_out or full or len(held) + len(by_group[group]) == len(dataset):
                break
            held += by_group[group]
        apart = set(held)
        return [index for index in range(len(dataset)) if index not in apart], sorted(held)

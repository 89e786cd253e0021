"""The pairs of a run: opened, split by prompt, and checked against what the objective needs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, cast

from PIL import Image

from palate.errors import UserError
from palate.readers import BadRow, PairDataset, PairStream, open_pairs
from palate.readers.reading import RecordDataset
from palate.records import Pair
from palate.training import source
from t2i.settings import DataConfig


class Subset(source.Subset[Pair]):
    """Some pairs of a dataset."""

    dataset: PairDataset

    def decoded(self, index: int) -> tuple[Pair, Image.Image, Image.Image]:
        """Return a pair and its pictures, chosen first."""
        pair, (chosen, rejected) = self.read(index)
        return pair, chosen, rejected

    def listed(self, index: int) -> Pair | None:
        """Return a pair without decoding its pictures; None where its row is bad and bad rows are left out."""
        try:
            return self.dataset.record(self.indices[index])
        except BadRow as error:
            if not self.skips:
                raise UserError(f"{error} Or leave such rows out with --data.on_bad_row skip.") from None
            return None

    @property
    def skips(self) -> bool:
        return self.dataset.on_bad_row == "skip"


class PairSource(source.RecordSource[Pair]):
    """Training and held-out pairs, as `DataConfig` says. A prompt is in one of the two only."""

    config: DataConfig
    training: Subset | None
    held_out: Subset | None

    def open(self, path: str, limit: int) -> PairDataset:
        return open_pairs(path, **self.options(limit))

    def open_stream(self) -> PairStream:
        return open_pairs(self.config.path, streaming=True, **self.options(self.config.limit))

    def subset(self, dataset: RecordDataset[Pair], indices: list[int]) -> Subset:
        return Subset(dataset, indices)

    def groups(self, dataset: RecordDataset[Pair]) -> list[str]:
        return cast(PairDataset, dataset).prompts()

    contents = groups

    def available(self, *, live: bool = True) -> dict[str, bool | str]:
        """Say what an objective may need and these data have (see `palate.objectives.build`).

        live: whether a reference runs beside the policy.
        """
        given: dict[str, bool | str] = dict.fromkeys(
            ("reference", "live_reference", "predictions", "inner_products"), True
        )
        if not live:
            given["live_reference"] = "not with --reference.kind cached"
        return {**given, **self.data_available()}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What makes the training pairs these pairs: for a table, a hash of their prompts and labels."""
        return self.identity("captions")

    def require_captions(self) -> None:
        """Raise UserError where dual captions are wanted and some rows have none."""
        if self.config.captions != "dual":
            return
        datasets = [part.dataset for part in (self.training, self.held_out) if part is not None]
        for dataset, name in product(datasets, ("prompt_chosen", "prompt_rejected")):
            missing = dataset.column_missing(name)
            if missing:
                raise UserError(
                    f"--data.captions dual needs {name}: {missing:,} of {len(dataset):,} rows have none. Add the column "
                    "(docs/your-own-pairs.md), or train with --data.captions shared."
                )

    def check_row(self, row: int, record: Pair, needs: frozenset[str]) -> None:
        missing: Mapping[str, bool] = {
            "score_gap": "score_gap" in needs and record.score_gap is None,
            "prompt_chosen": self.config.captions == "dual" and record.prompt_chosen is None,
            "prompt_rejected": self.config.captions == "dual" and record.prompt_rejected is None,
        }
        for name, lacking in missing.items():
            if lacking:
                raise UserError(f"Row {row} (counted from 0) has no {name}, which this run needs.")

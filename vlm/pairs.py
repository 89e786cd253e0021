"""The pairs of a run: opened, split by image, and checked against what the objective needs."""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

from palate.conversations import AnswerPair
from palate.errors import UserError
from palate.readers.answers import AnswerDataset, open_answer_pairs, stream_answer_pairs
from palate.readers.reading import RecordDataset, RecordStream
from palate.training.source import RecordSource
from vlm.settings import DataConfig


class AnswerSource(RecordSource[AnswerPair]):
    """Training and held-out pairs, as `DataConfig` says. An image is in one of the two only."""

    config: DataConfig
    group_noun = "images (or prompts without one)"

    def open(self, path: str, limit: int) -> AnswerDataset[AnswerPair]:
        return open_answer_pairs(path, image_root=self.config.image_root or None, **self.options(limit))

    def open_stream(self) -> RecordStream[AnswerPair]:
        root = self.config.image_root or None
        return stream_answer_pairs(self.config.path, image_root=root, **self.options(self.config.limit))

    def groups(self, dataset: RecordDataset[AnswerPair]) -> list[str]:
        return cast("AnswerDataset[AnswerPair]", dataset).groups()

    def contents(self, dataset: RecordDataset[AnswerPair]) -> list[str]:
        talks = cast("AnswerDataset[AnswerPair]", dataset)
        return [f"{group}\x1f{content}" for group, content in zip(talks.groups(), talks.contents(), strict=True)]

    def check_row(self, row: int, record: AnswerPair, needs: frozenset[str]) -> None:
        if "score_gap" in needs and record.score_gap is None:
            raise UserError(f"Row {row} (counted from 0) has no score_gap, which this run needs.")

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What makes the training pairs these pairs."""
        return self.identity("max_length")

    @cached_property
    def apart(self) -> bool:
        """Whether some answers have images of their own, so that no two share a prompt."""
        parts = [part.dataset for part in (self.training, self.held_out) if part is not None]
        if self.training is None:
            return self.open_stream().has_column("rejected_images")
        return any(dataset.column_missing("rejected_images") < len(dataset) for dataset in parts)

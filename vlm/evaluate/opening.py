"""Files of a benchmark, or the toy world -> the benchmark, and whether its pictures are the toy world's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from palate.errors import UserError
from vlm.evaluate.chair import Chair, read_chair
from vlm.evaluate.pope import Pope, read_pope
from vlm.evaluate.toy import toy_chair, toy_pope, toy_split
from vlm.evaluate.vocabulary import coco, read_vocabulary


def open_pope(questions: str) -> tuple[Pope, bool]:
    """Return the benchmark in a file of POPE, or of toy:held_out or toy:train."""
    if questions.startswith("toy:"):
        return toy_pope(toy_split(questions)), True
    return read_pope(questions), False


def open_chair(truth: Sequence[str], synonyms: str | Path | None = None) -> tuple[Chair, bool]:
    """Return the benchmark of files of truth (`read_chair`), or of toy:held_out or toy:train.

    synonyms: file of objects and their synonyms (default: COCO's 80); the toy world has words of its own.
    """
    if not truth[0].startswith("toy:"):
        return read_chair(truth, read_vocabulary(synonyms) if synonyms else coco()), False
    if synonyms:
        raise UserError("The toy world has words of its own; leave --synonyms out.")
    return toy_chair(toy_split(truth[0])), True

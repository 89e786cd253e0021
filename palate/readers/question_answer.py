"""Rows of image, question and a true answer: the plainest form of instruction data."""

from __future__ import annotations

from palate.readers.drafts import Draft, Row, exchange_reader, provenance, text
from palate.readers.turns import turns


def draft(row: Row) -> Draft:
    fields = {"answer": text("answer", row["answer"]), "source": "question_answer", "meta": provenance(row, ("id",))}
    return Draft(turns("question", text("question", row["question"])), fields)


READER = exchange_reader(
    "question_answer",
    draft,
    prompt="question",
    needs=("question", "answer"),
    cheap=("id",),
    unfold=lambda row: [row],
    nothing="",
)

"""POPE (Li et al., 2023, arXiv 2305.10355): is there a such-and-such in the image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from palate.errors import UserError
from vlm.evaluate.result import Finding, Question, Result, length_figure
from vlm.evaluate.rows import Unread, read_rows
from vlm.evaluate.yes_no import Judged, yes_no_figures

_NO = {"No", "not", "no"}


def read_answer(text: str) -> str:
    """Return "no" or "yes" as POPE's script reads an answer.

    Of the first sentence (up to a full stop), without commas, split at spaces: "no" if a word is No, not or no, else
    "yes". So "no!" and "NO" are "yes", as in every published figure.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if _NO.intersection(words) else "yes"


@dataclass(frozen=True)
class Pope:
    """A file of POPE: questions, and the truth ("yes" or "no") of each."""

    questions: Sequence[Question]
    truth: Mapping[str, str]
    name: str = "pope"
    max_new_tokens: int = 16

    def score(self, answers: Mapping[str, str]) -> Result:
        """Return accuracy, precision, recall and F1 of "yes", the share of "yes", and the length of the answers."""
        asked = [question for question in self.questions if question.id in answers]
        judged = [Judged(self.truth[q.id], read_answer(answers[q.id]), q.image) for q in asked]
        images = [question.image for question in asked]
        figures = yes_no_figures(judged, "yes")
        return Result(
            benchmark=self.name,
            figures=[*figures, length_figure([answers[q.id] for q in asked], images)],
            headline=("accuracy", "F1", "yes-ratio"),
            counts={
                "answers": len(asked),
                "images": len(set(images)),
                "true positives": sum(j.said == j.truth == "yes" for j in judged),
                "false positives": sum(j.said == "yes" and j.truth == "no" for j in judged),
                "true negatives": sum(j.said == j.truth == "no" for j in judged),
                "false negatives": sum(j.said == "no" and j.truth == "yes" for j in judged),
            },
            findings=[
                Finding(question, answers[question.id], [f"read as {j.said}, is {j.truth}"])
                for question, j in zip(asked, judged, strict=True)
                if j.said != j.truth
            ],
            notes=["Answers are read by POPE's rule; 'yes' is the positive class."],
            left_out=len(self.questions) - len(asked),
        )


def read_pope(path: str | Path) -> Pope:
    """Return the benchmark in a file of POPE: JSONL rows of question_id, image, text, label."""
    questions, truth = [], {}
    for place, row in read_rows(path):
        if isinstance(row, Unread):
            raise UserError(f"{path}, {place}: {row.reason}.")
        fields = ("question_id", "image", "text", "label")
        if not isinstance(row, dict) or any(not isinstance(row.get(f), (str, int)) for f in fields):
            raise UserError(
                f"{path}, {place}: a question of POPE has {', '.join(fields)}. Is this the file of questions?"
            )
        key = str(row["question_id"])
        if row["label"] not in ("yes", "no") or key in truth:
            what = f"label {row['label']!r}" if key not in truth else f"a second question {key}"
            raise UserError(f"{path}, {place}: {what}. Expected yes or no for a label, and each question once.")
        questions.append(Question(key, str(row["image"]), str(row["text"])))
        truth[key] = row["label"]
    return Pope(questions, truth)

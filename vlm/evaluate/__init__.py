"""Hallucination benchmarks from their own files: POPE, CHAIR and AMBER, with recall and length beside every figure.

benchmark = read_pope("coco_pope_random.json")
answers = read_answers("answers.jsonl", [q.id for q in benchmark.questions])
print(benchmark.score(answers.texts))
"""

from __future__ import annotations

from vlm.evaluate.amber import Amber, read_amber
from vlm.evaluate.answers import Answers, read_answers
from vlm.evaluate.chair import Chair, read_chair
from vlm.evaluate.pope import Pope, read_pope
from vlm.evaluate.result import Benchmark, Question, Result, result_report, write_result

__all__ = [
    "Amber",
    "Answers",
    "Benchmark",
    "Chair",
    "Pope",
    "Question",
    "Result",
    "read_amber",
    "read_answers",
    "read_chair",
    "read_pope",
    "result_report",
    "write_result",
]

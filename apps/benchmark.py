"""`palate eval pope|chair|amber`: how much a vision-language model hallucinates, with intervals, recall and length.

Answers lie in a JSONL file. With --model the questions that it does not answer yet are asked; without, it is scored as
it is.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.answerers import add_answerer_options, make_answerer
from palate.errors import UserError

if TYPE_CHECKING:
    from vlm.evaluate import Benchmark


def main(argv: Sequence[str]) -> None:
    """Answer what is missing, score, print the table, and write the JSON and the page where --out says."""
    args = make_parser(argv[0]).parse_args(list(argv[1:]))

    from palate.report import Step, write_report
    from vlm.evaluate import read_answers, result_report, write_result
    from vlm.evaluate.run import asks_of, folder_of, run_benchmark

    benchmark, toy = BENCHMARKS[argv[0]][1](args)
    if args.model:
        if not (args.images or toy):
            raise UserError("To ask a model, name the folder of the benchmark's images with --images.")
        from vlm.evaluate.toy import toy_picture

        pictures = toy_picture if toy else folder_of(args.images)
        asks_of(benchmark.questions, pictures, limit=args.limit)  # missing images, before a model is loaded
        answerer = make_answerer(args, max_new_tokens=args.max_new_tokens or benchmark.max_new_tokens)
        run_benchmark(
            benchmark,
            answerer,
            pictures,
            args.answers,
            limit=args.limit,
            instruction=args.instruction,
            progress=benchmark.name,
        )
    elif not args.answers.is_file():
        raise UserError(f"There is no file of answers at {args.answers}. Name a model with --model to make it.")
    ids = [question.id for question in benchmark.questions]
    answers = read_answers(args.answers, ids, getattr(benchmark, "aliases", None))
    wanted = ids[: args.limit or None]
    if argv[0] == "chair" and not args.limit:  # a file of truth covers more images than anybody describes
        wanted = [key for key in ids if key in answers.texts] or ids
    result = benchmark.score(answers.for_questions(wanted, str(args.answers), partial=args.partial))
    print(result)
    for note in result.notes:
        print(note)
    if args.out:
        path = write_result(args.out / f"{result.benchmark.replace(' ', '-')}.json", result)
        again = Step("Score the same answers again", shlex.join(("palate", "eval", *argv)))
        write_report(path.with_suffix(".html"), result_report(result, steps=[again]))
        print(f"Report: {path.with_suffix('.html')}")


def make_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of one benchmark's options."""
    add, _ = BENCHMARKS[name]
    parser = argparse.ArgumentParser(prog=f"palate eval {name}", description=__doc__)
    add(parser)
    parser.add_argument("--answers", required=True, type=Path, help="JSONL file of answers, to read and to complete")
    parser.add_argument("--images", type=Path, help="folder of the benchmark's images")
    parser.add_argument("--out", type=Path, help="folder for the JSON and the page (default: print only)")
    parser.add_argument("--limit", type=int, default=0, help="ask the first so many questions only (default: all)")
    parser.add_argument("--partial", action="store_true", help="score the answers there are, and say how many lack")
    parser.add_argument("--instruction", default="", help="a sentence to put after each question")
    parser.add_argument("--max-new-tokens", type=int, help="longest answer (default: the benchmark's)")
    add_answerer_options(
        parser, model="model to ask: transformers folder, hub id, adapter folder, toy:vlm; none scores only"
    )
    return parser


def _add_pope(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--questions", required=True, help="a file of POPE, such as coco_pope_random.json; toy:held_out"
    )


def _pope(args: argparse.Namespace) -> tuple[Benchmark, bool]:
    from vlm.evaluate.opening import open_pope

    return open_pope(args.questions)


def _add_chair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--truth",
        required=True,
        nargs="+",
        help="COCO's instances and captions, or rows of image and objects; toy:held_out",
    )
    parser.add_argument("--synonyms", type=Path, help="objects with their synonyms, a line each (default: COCO's 80)")
    parser.add_argument("--prompt", help="what to ask of each image (default: Describe this image in detail.)")


def _chair(args: argparse.Namespace) -> tuple[Benchmark, bool]:
    from dataclasses import replace

    from vlm.evaluate.opening import open_chair

    benchmark, toy = open_chair(args.truth, args.synonyms)
    return (replace(benchmark, prompt=args.prompt) if args.prompt else benchmark), toy


def _add_amber(parser: argparse.ArgumentParser) -> None:
    tasks = ("all", "generative", "discriminative", "existence", "attribute", "relation")
    parser.add_argument("--data", required=True, type=Path, help="AMBER's folder data/")
    parser.add_argument("--task", default="all", help=f"{', '.join(tasks)} (default: all)")
    parser.add_argument("--word-vectors", type=Path, help="text file of word vectors, for similar words")
    parser.add_argument("--first-word", action="store_true", help="read yes and no by an answer's first word")


def _amber(args: argparse.Namespace) -> tuple[Benchmark, bool]:
    from dataclasses import replace

    from vlm.evaluate import read_amber
    from vlm.evaluate.vectors import read_vectors

    benchmark = read_amber(args.data, args.task, first_word=args.first_word)
    if args.word_vectors:
        benchmark = replace(benchmark, similar=read_vectors(args.word_vectors, benchmark.listed))
    return benchmark, False


Add = Callable[[argparse.ArgumentParser], None]
Read = Callable[[Any], "tuple[Benchmark, bool]"]
BENCHMARKS: dict[str, tuple[Add, Read]] = {
    "pope": (_add_pope, _pope),
    "chair": (_add_chair, _chair),
    "amber": (_add_amber, _amber),
}
"""Name -> (what adds its options, options -> the benchmark, and whether its pictures are the toy world's)."""

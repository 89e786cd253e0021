"""`palate bench-rewards`: how well scorers predict what people prefer, beside trivial baselines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from palate.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Score, compare, write benchmark.json, report.html and calibrations, print the table; status 1 if rows failed."""
    parser = argparse.ArgumentParser(
        prog="palate bench-rewards",
        description=__doc__,
        epilog="Rules: threshold (PickScore's), inversions (HPDv2's), pooled (ImageReward's), decisive. Scores are kept "
        "in OUT/scores, and a run that was killed goes on from them.",
    )
    parser.add_argument(
        "--scorer",
        action="append",
        default=[],
        help="scorer by name or folder; may be repeated (default: baselines alone)",
    )
    parser.add_argument(
        "--data",
        required=True,
        help="pickapic:PATH, hpdv2:test.json, imagereward:test.json, or pairs of your own votes",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write; the same folder resumes")
    parser.add_argument("--images", help="folder of the images of rankings (default: beside their file)")
    parser.add_argument(
        "--split", default="train", help="split of pairs on the hub or in a saved dataset (default: train)"
    )
    parser.add_argument(
        "--validation", help="data to fit on, as --data (default: each half of the prompts by the other)"
    )
    parser.add_argument("--validation-split", default="train", help="split of --validation (default: train)")
    parser.add_argument("--rule", help="how to mark (default: the publishers' rule, or decisive)")
    parser.add_argument("--limit", type=int, help="use the first so many cases (default: all)")
    parser.add_argument("--draws", type=int, default=2000, help="resamplings behind the intervals (default: 2000)")
    parser.add_argument("--batch-size", type=int, default=64, help="images encoded at once (default: 64)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the best there is)")
    args = parser.parse_args(list(argv))
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit must be at least 1; got {args.limit}.")

    from palate.errors import unknown
    from palate.report import write_report
    from rewards import load_scorer
    from rewards.benchmark.baselines import baselines
    from rewards.benchmark.cases import open_cases
    from rewards.benchmark.page import lines, report
    from rewards.benchmark.results import compute
    from rewards.benchmark.rules import RULES
    from rewards.benchmark.scoring import file_name, score_cases

    if args.rule is not None and args.rule not in RULES:
        raise UserError(unknown("rule", args.rule, RULES))
    cases = open_cases(args.data, images=args.images, split=args.split, limit=args.limit)
    apart = None
    if args.validation:
        apart = open_cases(args.validation, images=args.images, split=args.validation_split, limit=args.limit)
    trivial = baselines()
    scorers = [load_scorer(name, device=args.device, batch_size=args.batch_size) for name in args.scorer]
    scorers += trivial
    scored = score_cases(cases, scorers, args.out / "scores")
    learnt = score_cases(apart, scorers, args.out / "validation") if apart else None
    names = [scorer.name for scorer in trivial]
    results = compute(scored, args.rule or cases.rule, baselines=names, validation=learnt, draws=args.draws)
    for row in results.rows:
        if row.name not in names:
            folder = args.out / "calibration"
            folder.mkdir(exist_ok=True)
            row.calibration.save(folder / f"{file_name(row.name)}.json")
    numbers = {"data": args.data, **results.as_dict(), "about": scored.about, "failures": scored.failures}
    (args.out / "benchmark.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    page = write_report(args.out / "report.html", report(results, args.data, scored, cases.summary()))
    print(cases.summary(), *lines(results), f"Report: {page}", sep="\n")
    if scored.failures:
        for name, rows in scored.failures.items():
            print(
                f"{len(rows):,} failed ({name or 'reading'}), first row {rows[0]['row']}: {rows[0]['reason']}",
                file=sys.stderr,
            )
        print(f"All of them: {args.out / 'benchmark.json'}", file=sys.stderr)
        sys.exit(1)

"""`palate eval`: draw two models at equal seeds, score both, and report win rates with intervals.

`palate eval pope`, `palate eval chair` and `palate eval amber` measure hallucination of a vision-language model instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from apps.benchmark import BENCHMARKS
from apps.benchmark import main as benchmark
from apps.sample import add_drawing_options
from palate.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Draw what is missing, compare, and write comparison.json and report.html; or run the benchmark that is named."""
    if argv and argv[0] in BENCHMARKS:
        benchmark(argv)
        return
    parser = argparse.ArgumentParser(prog="palate eval", description=__doc__)
    parser.add_argument("--model", required=True, help="pipeline or adapter folder, or hub id")
    parser.add_argument("--base", required=True, help="what to compare with")
    parser.add_argument("--prompts", required=True, help="file of prompts (.txt, .jsonl, .csv, .tsv), or toy:held_out")
    parser.add_argument("--scorer", action="append", required=True, help="scorer by name or folder; may be repeated")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--tie", type=float, default=0.0, help="largest score difference that is a tie (default: 0)")
    add_drawing_options(parser)
    args = parser.parse_args(list(argv))

    from palate.report import write_report
    from rewards import load_scorer
    from t2i.evaluate import compare_folders, comparison_report, write_comparison
    from t2i.sample import check_model, draw_folder, load_pipeline, read_prompts, repeat_prompts
    from t2i.train import quiet_libraries

    quiet_libraries()
    if len(set(args.scorer)) < len(args.scorer):
        raise UserError("A --scorer is named twice.")
    for source in (args.base, args.model):
        check_model(source)
    scorers = [
        load_scorer(name, device=args.device) for name in args.scorer
    ]  # first: a misspelt name should not cost the drawing
    prompts, seeds = repeat_prompts(read_prompts(args.prompts, args.limit), args.per_prompt, args.seed)
    how = {"steps": args.steps, "guidance": args.guidance, "batch_size": args.batch_size}
    for name, source in (("base", args.base), ("model", args.model)):
        pipeline = load_pipeline(source, device=args.device)
        for _ in draw_folder(pipeline, prompts, seeds, args.out / name, model=source, progress=f"draw {name}", **how):
            pass
        del pipeline
    wanted = set(zip(prompts, seeds, strict=True))
    comparison = compare_folders(args.out / "model", args.out / "base", scorers, tie=args.tie, wanted=wanted)
    write_comparison(args.out, comparison)
    path = write_report(args.out / "report.html", comparison_report(comparison, args.model, args.base))
    for verdict in comparison.verdicts.values():
        print(f"{verdict.scorer}: win rate {verdict.wins} over {verdict.wins.n} decisive of {len(verdict.outcomes)}")
    print(f"Report: {path}")

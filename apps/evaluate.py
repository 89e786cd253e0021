"""`palate eval`: draw two models at equal seeds, score both, and report win rates with intervals, and drift.

`palate eval pope`, `palate eval chair` and `palate eval amber` measure hallucination of a vision-language model instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apps.benchmark import BENCHMARKS
from apps.benchmark import main as benchmark
from apps.sample import PROMPTS_HELP, add_drawing_options, drawing_options
from palate.errors import UserError

if TYPE_CHECKING:
    from palate.model_card import Evaluation
    from t2i.evaluate import Comparison


def main(argv: Sequence[str]) -> None:
    """Draw what is missing, compare, and write comparison.json, grid.png and report.html; or run the benchmark named."""
    if argv and argv[0] in BENCHMARKS:
        benchmark(argv)
        return
    parser = argparse.ArgumentParser(prog="palate eval", description=__doc__)
    parser.add_argument("--model", required=True, help="pipeline or adapter folder, or hub id")
    parser.add_argument("--base", help="what to compare with (default: what the model says it was trained from)")
    parser.add_argument("--prompts", required=True, help=PROMPTS_HELP)
    parser.add_argument("--scorer", action="append", required=True, help="scorer by name or folder; may be repeated")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--tie", type=float, default=0.0, help="largest score difference that is a tie (default: 0)")
    parser.add_argument(
        "--drift-bound",
        action="append",
        default=[],
        metavar="NAME=SHARE",
        help="alarm where a measure changed by more than this (default: sharpness=0.25, saturation=0.2, diversity=0.2)",
    )
    parser.add_argument("--no-card", action="store_true", help="leave the model card of a local model as it is")
    add_drawing_options(parser)
    args = parser.parse_args(list(argv))

    from palate.model_card import add_evaluation, public_name
    from palate.report import write_report
    from rewards import load_scorer
    from t2i.drift import parse_bounds
    from t2i.evaluate import compare_folders, comparison_report, require_distinct, write_comparison
    from t2i.grids import contact_sheet
    from t2i.prompt_sets import read_prompt_set
    from t2i.sample import check_model, draw_folder, load_pipeline, repeat_prompts
    from t2i.train import quiet_libraries

    quiet_libraries()
    if len(set(args.scorer)) < len(args.scorer):
        raise UserError("A --scorer is named twice.")
    if not args.tie >= 0:
        raise UserError(f"--tie must not be negative; got {args.tie}.")
    bounds = parse_bounds(args.drift_bound)
    base = args.base or trained_from(args.model)
    for source in (base, args.model):
        check_model(source)
    prompt_set = read_prompt_set(args.prompts, args.limit)
    # First: a misspelt name should not cost the drawing.
    scorers = [load_scorer(name, device=args.device, cache=args.out / "embeddings") for name in args.scorer]
    require_distinct(scorers)
    prompts, seeds = repeat_prompts(prompt_set.prompts, args.per_prompt, args.seed)
    how = drawing_options(args)
    for name, source in (("base", base), ("model", args.model)):
        pipeline = load_pipeline(source, device=args.device)
        for _ in draw_folder(pipeline, prompts, seeds, args.out / name, model=source, progress=f"draw {name}", **how):
            pass
        del pipeline
    comparison = compare_folders(
        args.out / "model",
        args.out / "base",
        scorers,
        tie=args.tie,
        wanted=set(zip(prompts, seeds, strict=True)),
        groupings=prompt_set.groupings,
        bounds=bounds,
    )
    write_comparison(args.out, comparison)
    sheet = args.out / "grid.png"
    contact_sheet(comparison.pairings, model=public_name(args.model), base=public_name(base)).save(sheet)
    settings = (
        f"{len(prompt_set.prompts)} prompts, {args.per_prompt} image{'s' * (args.per_prompt > 1)} each from seed "
        f"{args.seed}, {args.steps} steps, guidance {args.guidance:g}"
    )
    if args.max_sequence_length:
        settings += f", {args.max_sequence_length} tokens of long text"
    made_by = {"prompts": prompt_set.source, "drawn": settings, "tie": f"differs by at most {args.tie:g}"}
    report = comparison_report(comparison, args.model, base, provenance=made_by)
    path = write_report(args.out / "report.html", report)
    for verdict in comparison.verdicts.values():
        print(f"{verdict.scorer}: win rate {verdict.wins} over {verdict.wins.n} decisive of {len(verdict.outcomes)}")
    for drift in comparison.drifts:
        if drift.verdict != "not measured":
            print(f"drift: {drift}: {'ALARM' if drift.verdict == 'alarm' else drift.verdict}")
    print(f"Grid: {sheet}\nReport: {path}")
    evaluation = _for_card(comparison, public_name(base), prompt_set.name, settings)
    if not args.no_card and add_evaluation(Path(args.model), evaluation):
        print(f"Added to the model card of {args.model}.")


def trained_from(model: str) -> str:
    """Return the base that a folder of palate's was trained from; UserError where it does not say."""
    for folder in (Path(model), Path(model) / "model"):
        if (folder / "palate.yaml").is_file():
            from palate.training.run_record import RunRecord

            run = RunRecord((folder / "palate.yaml").read_text(encoding="utf-8"), [])
            if base := run.setting("model", "path"):
                return base
    raise UserError(
        f"--base is missing, and {model} does not say what it was trained from. Name the model to compare with."
    )


def _for_card(comparison: Comparison, base: str, prompts: str, settings: str) -> Evaluation:
    """Return what the model card tells of a comparison."""
    from palate.model_card import Evaluation

    return Evaluation(
        base=base,
        prompts=prompts,
        settings=settings,
        scores={name: (verdict.wins, verdict.gain) for name, verdict in comparison.verdicts.items()},
        notes=[
            f"{'Drift alarm: ' if drift.verdict == 'alarm' else 'Drift: '}{drift}."
            for drift in comparison.drifts
            if drift.verdict != "not measured"
        ],
    )

"""`palate demo`: the loop on the toy world, for images (draw, vote, train, draw again) and for answers about images."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apps.toy_loop import Voted
    from palate.report import Report
    from t2i.evaluate import Comparison


MADE = {
    "t2i": (
        "pairs",
        "pairs.parquet",
        "checkpoints",
        "samples",
        "model",
        "before",
        "after",
        "metrics.jsonl",
        "config.yaml",
    ),
    "vlm": ("vlm",),
}
"""Half -> what an earlier demo left that would be in the way."""


def main(argv: Sequence[str]) -> None:
    """Run the demo and print where the report is."""
    parser = argparse.ArgumentParser(prog="palate demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write (default: runs/demo)")
    parser.add_argument("--only", choices=tuple(MADE), help="run one half: images, or answers (default: both)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the whole demo (default: 0)")
    images = parser.add_argument_group("images")
    images.add_argument("--pairs", type=int, default=1024, help="pairs to draw and vote on (default: 1024)")
    images.add_argument("--steps", type=int, default=300, help="training steps (default: 300)")
    images.add_argument("--held-out", type=int, default=294, help="held-out prompts to compare on (default: all 294)")
    answers = parser.add_argument_group("answers")
    answers.add_argument("--pictures", type=int, default=512, help="pictures to describe for training (default: 512)")
    answers.add_argument("--vlm-steps", type=int, default=100, help="training steps (default: 100)")
    answers.add_argument("--vlm-held-out", type=int, default=300, help="held-out pictures (default: 300)")
    args = parser.parse_args(list(argv))
    began = time.monotonic()
    out: Path = args.out
    halves = tuple(MADE) if args.only is None else (args.only,)
    _make_room(out, halves)
    said: list[str] = []
    if "t2i" in halves:
        print("Images", file=sys.stderr)
        said += _image_half(out, args)
    if "vlm" in halves:
        from apps.demo_vlm import vlm_half

        print("Answers", file=sys.stderr)
        said += vlm_half(
            out / "vlm", pictures=args.pictures, steps=args.vlm_steps, held_out=args.vlm_held_out, seed=args.seed
        )
    print("\n".join([*said, f"Time: {time.monotonic() - began:.0f} s"]))


def _image_half(out: Path, args: argparse.Namespace) -> list[str]:
    from apps.toy_loop import compare, draw_and_vote, draw_held_out, train, write_voted
    from palate.report import write_report
    from t2i.evaluate import write_comparison
    from t2i.train import quiet_libraries

    began = time.monotonic()
    quiet_libraries()
    print("1/5  The base model draws two images for each prompt; synthetic people vote.", file=sys.stderr)
    voted = draw_and_vote(out / "pairs", count=args.pairs, seed=args.seed)
    write_voted(out / "pairs.parquet", voted.pairs)
    print(f"     {voted.summary}\n2/5  Diffusion-DPO trains on their votes.", file=sys.stderr)
    outcome = train(
        "toy/dpo", out / "pairs.parquet", out, "--train.steps", str(args.steps), "--train.seed", str(args.seed)
    )
    print("3/5  Base and trained model draw the same held-out prompts from the same seeds.", file=sys.stderr)
    draw_held_out("toy:sd", out / "before", count=args.held_out, label="draw before")
    draw_held_out(str(outcome.model), out / "after", count=args.held_out, label="draw after")
    print("4/5  The hidden taste, its two parts and a learned scorer compare them.", file=sys.stderr)
    comparison = compare(out / "after", out / "before")
    write_comparison(out, comparison)
    print("5/5  Report.", file=sys.stderr)
    report = demo_report(out, voted, comparison, seconds=time.monotonic() - began, seed=args.seed)
    path = write_report(out / "report.html", report)
    taste = comparison.verdicts["toy-taste"]
    return [
        f"Win rate under the hidden taste: {taste.wins} of {taste.wins.n} decisive comparisons.",
        f"Model: {outcome.model}",
        f"Report: {path}",
    ]


def demo_report(out: Path, voted: Voted, comparison: Comparison, *, seconds: float, seed: int) -> Report:
    """Return the page that the demo ends with."""
    from palate.charts import Chart, Line
    from palate.report import Card, Grid, Report, Step, Table
    from palate.training.journal import read_journal, series
    from t2i.evaluate import comparison_rows, score_table

    rows = read_journal(out / "metrics.jsonl")
    taste = comparison.verdicts["toy-taste"]
    alarms = [f"guard, step {row['step']}: {row['alarm']}: {row['reason']}" for row in rows if row["kind"] == "guard"]
    parts = ("total", "semantic", "visual")
    return Report(
        title="From votes to an aligned image model",
        lede=(
            f"After {rows[-1]['step']} steps of Diffusion-DPO on {len(voted.pairs)} voted pairs, the model's images win "
            f"{taste.wins} of the {taste.wins.n} decisive comparisons against the base model's, on prompts and seeds that "
            "training never saw."
        ),
        cards=[
            Card("Hidden taste", taste.wins, "what the voters share; training saw only their noisy votes"),
            Card("Right objects, colours, places", comparison.verdicts["toy-semantic"].wins, "semantic part alone"),
            Card("Size and composition", comparison.verdicts["toy-visual"].wins, "visual part alone"),
            Card("A learned scorer", comparison.verdicts["toy"].wins, "miniature CLIP, which training never saw"),
        ],
        notices=alarms,
        grids=[
            Grid(
                "Held-out prompts, equal seeds",
                comparison_rows(comparison, "toy-taste", 12),
                before="base",
                after="trained",
                note="The winner is the hidden taste's. Nothing was picked: twelve prompts, evenly spaced in the list.",
            )
        ],
        charts=[
            Chart(
                "Loss", [Line("training", series(rows, "train", "loss"))], marks=[(math.log(2), "ln 2: no preference")]
            ),
            Chart(
                "Implicit accuracy",
                [
                    Line("training", series(rows, "train", "accuracy")),
                    Line("held-out", series(rows, "eval", "eval/accuracy")),
                ],
                marks=[(0.5, "chance")],
                note="Share of pairs on which the model, measured against its reference, prefers what voters chose.",
            ),
            Chart(
                "Drift from the reference",
                [
                    Line("chosen", series(rows, "train", "drift/chosen")),
                    Line("rejected", series(rows, "train", "drift/rejected")),
                ],
                y_label="score",
                marks=[(0.0, "reference")],
                note="Both may fall; training is in trouble when chosen falls as fast as rejected.",
            ),
        ],
        tables=[
            score_table(comparison),
            Table(
                "What trivial statistics would predict",
                ("statistic", "taste", "semantic part", "visual part"),
                [
                    (name, *(f"{100 * accuracy[part]:.1f} %" for part in parts))
                    for name, accuracy in voted.trivial.items()
                ],
                note="Accuracy on the drawn pairs: how often the statistic alone picks the image that the taste prefers.",
            ),
        ],
        steps=[
            Step(
                "Try another objective on the same votes",
                f"palate train t2i --config toy/mapo --data.path {out}/pairs.parquet --out runs/mapo",
            ),
            Step(
                "Compare the two trained models",
                f"palate eval --model runs/mapo/model --base {out}/model --prompts toy:held_out --scorer toy-taste "
                "--steps 20 --guidance 3.5 --out runs/mapo_vs_dpo",
            ),
            Step(
                "Train Stable Diffusion 1.5 on your own pairs (docs/your-own-pairs.md)",
                "accelerate launch -m t2i.train --config t2i/sd15_dpo_lora --data.path your_pairs.parquet",
            ),
        ],
        provenance={
            "seed": seed,
            "seconds": round(seconds),
            "votes": voted.summary,
            "tie rule": "taste differs by at most .01; win rates leave ties out; intervals are clustered by prompt",
        },
        config=(out / "config.yaml").read_text(encoding="utf-8"),
    )


def _make_room(out: Path, halves: Sequence[str]) -> None:
    """Start anew where an earlier demo lies; leave a folder alone that is not one."""
    from palate.errors import UserError

    stamp = out / "demo.json"
    if out.exists() and any(out.iterdir()):
        if not stamp.exists():
            raise UserError(f"{out} holds something that is not a demo. Give another --out.")
        for name in (name for half in halves for name in MADE[half]):
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps({"demo": "palate"}), encoding="utf-8")

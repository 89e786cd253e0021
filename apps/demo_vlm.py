"""The vision-language half of the demo: describe pictures, train against what was said falsely, describe others, report."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apps.toy_vlm_loop import Told
    from palate.report import Report
    from palate.toy.vlm_truth import Truth

SHOWN = 8
"""Pictures whose descriptions are in the report."""


def vlm_half(out: Path, *, pictures: int, steps: int, held_out: int, seed: int) -> list[str]:
    """Run the half in a folder and return what to print: the figures, the model, the report."""
    from apps.toy_vlm_loop import BASE, reject, tell, train, true_answers
    from palate.report import write_report
    from vlm.train import quiet_libraries

    quiet_libraries()
    began = time.monotonic()
    print("1/4  The base model describes pictures; what it says falsely is rejected.", file=sys.stderr)
    pairs = reject("own", true_answers("train", pictures, seed), out / "pairs", seed=seed)
    print("2/4  DPO trains on true descriptions against those.", file=sys.stderr)
    how = ("--train.steps", str(steps), "--train.seed", str(seed))
    model = str(train("toy/vlm_dpo", pairs, out, *how).model)
    print("3/4  Base and trained model describe held-out pictures.", file=sys.stderr)
    before = tell(BASE, out / "before", count=held_out, label="describe before")
    after = tell(model, out / "after", count=held_out, label="describe after")
    print("4/4  Report.", file=sys.stderr)
    report = vlm_report(out, before, after, seconds=time.monotonic() - began, seed=seed)
    path = write_report(out / "report.html", report)
    return [*figures(before.truth, after.truth), f"Model: {model}", f"Report: {path}"]


def figures(before: Truth, after: Truth) -> list[str]:
    """Return the figures before and after, a line each."""
    return [
        f"Answers that hallucinate: {before.answers} before, {after.answers} after.",
        f"Recall: {before.recall} before, {after.recall} after.",
        f"Things named: {before.length} before, {after.length} after.",
    ]


def vlm_report(out: Path, before: Told, after: Told, *, seconds: float, seed: int) -> Report:
    """Return the page that the half ends with."""
    from apps.toy_vlm_loop import change_of_recall, held_out, things_of
    from palate.charts import Chart, Line
    from palate.report import Card, Report, Said, Sayings, Step, Table
    from palate.statistics import mean_interval
    from palate.toy.vlm_truth import judge
    from palate.training.journal import read_journal, series

    rows = read_journal(out / "metrics.jsonl")
    exchanges = held_out(len(before.answers))
    pictures = [things_of(exchange) for exchange in exchanges]
    old, new = before.truth, after.truth
    false = [k for k, said in enumerate(before.answers) if judge(said, pictures[k]).hallucinated]
    shown = [false[k * len(false) // SHOWN] for k in range(min(SHOWN, len(false)))]
    return Report(
        title="Fewer hallucinations",
        lede=(
            f"After {rows[-1]['step']} steps of DPO against its own false descriptions, the model names things that are "
            f"not there in {new.answers.value:.0%} of its answers, down from {old.answers.value:.0%}, on pictures unlike "
            "those of training."
        ),
        cards=[
            Card(
                "Answers that hallucinate, after", new.answers, f"before: {old.answers}", old.answers.value, "pictures"
            ),
            Card("Recall, after", new.recall, f"before: {old.recall}", old.recall.value, "pictures"),
            Card("Things named, after", new.length, f"before: {old.length}", old.length.value, "pictures"),
        ],
        notices=[f"guard, step {r['step']}: {r['alarm']}: {r['reason']}" for r in rows if r["kind"] == "guard"],
        sayings=[
            Sayings(
                "What they say",
                [
                    Said(
                        exchanges[k].prompt[-1].text,
                        exchanges[k].images[0].decode(),
                        judge(before.answers[k], pictures[k]).marked(),
                        judge(after.answers[k], pictures[k]).marked(),
                    )
                    for k in shown
                ],
                before="base",
                after="trained",
                marks="it is not in the picture",
                note=f"{len(shown)} held-out pictures of the {len(false)} on which the base hallucinates, evenly spaced.",
            )
        ],
        charts=[
            Chart(
                "Loss", [Line("training", series(rows, "train", "loss"))], marks=[(math.log(2), "ln 2: no preference")]
            ),
            Chart(
                "What the image is worth",
                [Line("held-out", series(rows, "eval", "eval/image_reliance"))],
                y_label="nats per token",
                note="Log-probability of the true description with the picture, less that with a blank one.",
            ),
        ],
        tables=[
            Table(
                "Before and after",
                ("figure", "base", "trained"),
                [
                    ("answers that hallucinate", old.answers, new.answers),
                    ("the same at temperature 1", before.sampled.answers, after.sampled.answers),
                    ("hallucinated of all things named", old.mentions, new.mentions),
                    ("recall", old.recall, new.recall),
                    ("change of recall", None, change_of_recall(before, after)),
                    ("things named", old.length, new.length),
                    ("things shown", None, mean_interval([float(len(things)) for things in pictures])),
                ],
                note="The most likely answers, unless it says otherwise. Shorter answers hallucinate less by themselves: "
                "read the rate beside recall and length.",
            )
        ],
        steps=[
            Step(
                "Reject what the model says under noise instead (BPO)",
                f"palate build --method bpo-weaken --model toy:vlm --data {out}/pairs/own.parquet --max-new-tokens 64 "
                "--out runs/weakened.parquet",
            ),
            Step(
                "Train on those pairs",
                "palate train vlm --config toy/vlm_bpo --data.path runs/weakened.parquet --out runs/bpo",
            ),
        ],
        provenance={"seed": seed, "seconds": round(seconds), "pictures described": len(pictures)},
        config=(out / "config.yaml").read_text(encoding="utf-8"),
    )

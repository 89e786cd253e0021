"""The page that every run ends with: OUT/report.html, made of what lies in the run's folder, and of nothing else.

It is made after the last step, and also where the guard or a person stopped the run; `palate report RUN` makes it again.
"""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from palate.charts import MAX_LINES, Chart, Line
from palate.report import Grid, Report, Row, Step, Strip, Table, write_report
from palate.training.journal import series
from palate.training.run_record import COUNTS, RunRecord, read_run

FILE = "report.html"
_SHOWN_SIDE = 256  # pixels of a drawn image on the page
_SHOWN_STEPS = 6


class _Plot(NamedTuple):
    """A chart of journal rows: lines are (kind, name in the journal, name in the legend)."""

    title: str
    lines: Sequence[tuple[str, str, str]]
    marks: Sequence[tuple[float, str]] = ()
    y_label: str = ""
    note: str = ""


_PLOTS = (
    _Plot("Loss", (("train", "loss", "training"), ("eval", "eval/loss", "held-out"))),
    _Plot(
        "Accuracy",
        (("train", "accuracy", "training"), ("eval", "eval/accuracy", "held-out")),
        ((0.5, "chance"),),
        note="Share of preferences that the model reproduces; against its reference, where it has one.",
    ),
    _Plot("Margin", (("train", "margin", "training"), ("eval", "eval/margin", "held-out")), ((0.0, "none"),), "logits"),
    _Plot("Gap between the better and the worse", (("train", "gap", "training"),), ((0.0, "none"),), "score"),
    _Plot(
        "Denoising errors",
        (
            ("train", "chosen_error", "chosen"),
            ("train", "rejected_error", "rejected"),
            ("eval", "eval/chosen_error", "chosen, held-out"),
        ),
    ),
    _Plot(
        "Chosen error, over the reference's",
        (("train", "chosen_error_ratio", "training"), ("eval", "eval/chosen_error_ratio", "held-out")),
        ((1.0, "reference"),),
    ),
    _Plot(
        "Drift from the reference",
        (("train", "drift/chosen", "chosen"), ("train", "drift/rejected", "rejected")),
        ((0.0, "reference"),),
        "score",
        "Both may fall; training is in trouble when chosen falls as fast as rejected.",
    ),
    _Plot(
        "Negative log-probability of chosen answers",
        (("train", "chosen_nll", "training"), ("eval", "eval/chosen_nll", "held-out")),
        y_label="nats per token",
    ),
    _Plot("Saturated latent values in samples", (("eval", "eval/saturation", "share"),)),
    _Plot("Gradient norm", (("train", "grad_norm", "before clipping"),)),
    _Plot("Learning rate", (("train", "lr", "learning rate"),)),
    _Plot("Speed", (("train", "items_per_second", "items per second"),)),
)


def write_run_report(out: Path) -> Path:
    """Write OUT/report.html from the journal, the configuration and the samples in `out`, and return its path."""
    return write_report(out / FILE, run_report(out, read_run(out)))


def end_with_report(out: Path) -> Path | None:
    """Write the report and return its path; where that fails, warn and return None: a page never costs a run."""
    try:
        return write_run_report(out)
    except Exception as error:
        warnings.warn(f"The report of {out} could not be written ({error!r}); the run itself is whole.", stacklevel=2)
        return None


def run_report(out: Path, run: RunRecord) -> Report:
    """Return the page."""
    samples = _samples(out / "samples")
    return Report(
        title=_title(run),
        lede=_lede(run),
        notices=_notices(run),
        grids=_before_and_after(samples),
        strips=_strips(samples),
        charts=_charts(run),
        tables=_tables(run),
        steps=_steps(out, run),
        provenance=_provenance(out, run),
        config=run.resolved,
    )


def _title(run: RunRecord) -> str:
    what = {"t2i": "A text-to-image run", "vlm": "A vision-language run", "rewards": "A scorer's run"}
    base = run.setting("model", "path")
    return (what[run.room] if run.room else "A run") + (f", from {base}" if base else "")


def _lede(run: RunRecord) -> str:
    """Return how far it came, and the held-out accuracy, or another measure, first and last."""
    wanted = f" of {run.wanted_steps:,}" if run.wanted_steps and run.wanted_steps != run.step else ""
    how = {"done": "After", "guard": "Stopped by the guard after", "early": "Ended early, after"}[run.ended]
    head = f"{how} {run.step:,}{wanted} steps in {_duration(run.seconds)}"
    found = {m.name: m for m in run.measures() if m.name not in COUNTS}
    best = found.get("accuracy") or next(iter(found.values()), None)
    if best is None:
        return f"{head}; nothing was held out to measure."
    if best.name == "accuracy":
        return f"{head}, held-out accuracy went from {100 * best.first:.1f} % to {100 * best.last:.1f} %."
    return f"{head}, held-out {best.name} went from {best.first:.3g} to {best.last:.3g}."


def _notices(run: RunRecord) -> list[str]:
    said = [f"Guard, step {row['step']:,}: {row['alarm']}: {row['reason']}" for row in run.alarms]
    if run.ended == "early":
        said.append("The run was interrupted, or had not ended when this page was written. Below: how to continue it.")
    return said


def _charts(run: RunRecord) -> list[Chart]:
    """Return a chart of each plot of which anything changed over the run, then of what else evaluations measured."""
    rows = [dict(row) for row in run.rows]
    charts = []
    drawn = set()
    for plot in _PLOTS:
        lines = [Line(label, series(rows, kind, name)) for kind, name, label in plot.lines]
        drawn |= {name for _, name, _ in plot.lines}
        lines = [line for line in lines if line.points]
        if lines and (len({y for line in lines for _, y in line.points}) > 1 or plot.title == "Loss"):
            marks = _loss_marks(run) if plot.title == "Loss" else plot.marks
            charts.append(Chart(plot.title, lines, y_label=plot.y_label, marks=marks, note=plot.note))
    groups: dict[str, list[str]] = {}
    for measure in run.measures():
        if f"eval/{measure.name}" not in drawn and measure.name not in COUNTS:
            head, _, tail = measure.name.rpartition("/")
            groups.setdefault(head or tail, []).append(measure.name)
    for head, names in groups.items():
        lines = [Line(name.removeprefix(f"{head}/"), series(rows, "eval", f"eval/{name}")) for name in names]
        lines = [line for line in lines if len(line.points) > 1]
        for begin in range(0, len(lines), MAX_LINES):
            charts.append(Chart(f"Held-out {head}", lines[begin : begin + MAX_LINES], x_label="step"))
    return charts


def _loss_marks(run: RunRecord) -> Sequence[tuple[float, str]]:
    """The loss of a logistic objective begins at ln 2; other objectives have no such place."""
    terms = run.setting("objective", "terms") or []
    logistic = len(terms) == 1 and terms[0].get("objective") == "dpo" and terms[0].get("weight", 1.0) == 1.0
    return ((math.log(2), "ln 2: no preference"),) if logistic else ()


def _tables(run: RunRecord) -> list[Table]:
    tables = []
    measures = [m for m in run.measures() if m.name not in COUNTS]
    if measures:
        counts = ", ".join(f"{m.last:,.0f} {m.name}" for m in run.measures() if m.name in COUNTS)
        rows = [(m.name, m.first, m.last, m.last - m.first, f"{m.first_step:,} to {m.last_step:,}") for m in measures]
        tables.append(
            Table(
                "Held-out measures, first and last",
                ("measure", "first", "last", "change", "steps"),
                rows,
                note=f"{f'Over {counts}. ' if counts else ''}Without intervals: a run watching itself, not yet a claim.",
            )
        )
    if run.alarms:
        alarms = [
            (f"step {row['step']:,}", row["alarm"], "stopped the run" if row.get("stop") else "warned", row["reason"])
            for row in run.alarms
        ]
        tables.append(Table("Guard", ("when", "alarm", "what it did", "why"), alarms))
    return tables


class _Drawn(NamedTuple):
    """The images of one evaluation."""

    step: int
    images: list[Path]
    prompts: list[str]


def _samples(folder: Path) -> list[_Drawn]:
    """Return what evaluations drew, by step; those that drew nothing, or other things than images, are left out.

    The prompts are written last: without them an evaluation is under way, or was killed.
    """
    found = []
    for place in sorted(folder.glob("step-*")) if folder.is_dir() else []:
        images = sorted(path for path in place.glob("*.png") if path.stem.isdigit())
        named = place / "prompts.txt"
        if images and named.is_file():
            prompts = named.read_text(encoding="utf-8").splitlines()
            prompts = prompts if len(prompts) == len(images) else [f"image {n}" for n in range(len(images))]
            found.append(_Drawn(int(place.name.removeprefix("step-")), images, prompts))
    return found


def _before_and_after(samples: Sequence[_Drawn]) -> list[Grid]:
    if len(samples) < 2:
        return []
    first, last = samples[0], samples[-1]
    rows = [
        Row(prompt, _opened(before), _opened(after))
        for prompt, before, after in zip(last.prompts, first.images, last.images, strict=False)
    ]
    note = "The same prompts from the same seeds; nobody judged them."
    return [Grid("Drawn during the run", rows, f"step {first.step:,}", f"step {last.step:,}", note)]


def _strips(samples: Sequence[_Drawn]) -> list[Strip]:
    """Return each prompt over the evaluations, evenly spaced where there are many; two are a grid already."""
    if len(samples) == 2 or not samples:
        return []
    count = min(_SHOWN_STEPS, len(samples))
    chosen = [samples[round(k * (len(samples) - 1) / max(1, count - 1))] for k in range(count)]
    rows = [
        (prompt, [(f"step {drawn.step:,}", _opened(drawn.images[n])) for drawn in chosen if n < len(drawn.images)])
        for n, prompt in enumerate(samples[-1].prompts)
    ]
    return [Strip("Over the run", rows)]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return picture


def _steps(out: Path, run: RunRecord) -> list[Step]:
    """Return what to do next; commands that a shell takes."""
    where, model = shlex.quote(str(out)), shlex.quote(str(out / "model"))
    if run.ended == "early" and run.room:
        config = shlex.quote(str(out / "config.yaml"))
        return [Step("Continue from the last checkpoint", f"palate train {run.room} --config {config} --resume auto")]
    if run.ended == "guard" and run.room:
        config, gentler = shlex.quote(str(out / "config.yaml")), shlex.quote(f"{out}-gentler")
        rate = (run.setting("optim", "lr") or 1e-5) / 3
        words = "Begin anew with a third of the learning rate; the checkpoints here stay as they are"
        again = f"palate train {run.room} --config {config} --out {gentler} --optim.lr {rate:.2g}"
        return [Step(words, again)]
    if run.room == "t2i":
        length = run.setting("model", "max_sequence_length")
        long = f" --max-sequence-length {length}" if length else ""
        steps = [
            Step(
                "Compare with the base at equal seeds, under a scorer that did not choose the pairs",
                f"palate eval --model {model} --prompts prompts.txt --scorer pickscore --per-prompt 4{long} "
                f"--out {where}/eval",
            ),
            Step("Draw", f"palate sample --model {model} --prompt 'a prompt'{long} --out {where}/drawn"),
        ]
    elif run.room == "vlm":
        steps = [
            Step(
                "Measure hallucination (docs/vlm-evaluation.md)",
                f"palate eval pope --questions coco_pope_random.json --images val2014 --model {model} "
                f"--answers {where}/pope.jsonl --out {where}/pope",
            )
        ]
    elif run.room == "rewards":
        best = out / "best" if (out / "best").is_dir() else out / "model"
        steps = [
            Step(
                "Measure it against other scorers",
                f"palate bench-rewards --data test.parquet --scorer {shlex.quote(str(best))} --scorer pickscore "
                f"--out {where}/bench",
            )
        ]
    else:
        return []
    if any((out / "model").glob("*lora*.safetensors")) or (out / "model" / "adapter_config.json").is_file():
        merged = shlex.quote(str(out / "merged"))
        steps.append(Step("Merge the adapter into its base", f"palate merge --adapter {model} --out {merged}"))
    return [*steps, Step("Upload it with its card", f"palate push --model {model} --to owner/name")]


def _provenance(out: Path, run: RunRecord) -> dict[str, str]:
    found = {
        "run": str(out),
        "data": run.setting("data", "path"),
        "seed": run.setting("train", "seed"),
        "steps": f"{run.step:,}",
        "time": _duration(run.seconds),
        "precision": run.setting("train", "precision"),
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def _duration(seconds: float) -> str:
    """Return, for example, "42 s", "3 min 5 s" or "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

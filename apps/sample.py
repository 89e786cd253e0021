"""`palate sample`: draw images for a list of prompts into a folder with metadata.jsonl."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.errors import UserError

if TYPE_CHECKING:
    from t2i.sample import Sample

PROMPTS_HELP = (
    "prompts: a file (.txt, .jsonl, .json, .csv, .tsv, .parquet; PartiPrompts and GenEval as published), a folder of "
    "HPSv2's four files, or toy:held_out"
)


def main(argv: Sequence[str]) -> None:
    """Draw, resuming a folder that holds some of the images already."""
    parser = argparse.ArgumentParser(prog="palate sample", description=__doc__)
    parser.add_argument("--model", required=True, help="pipeline folder, adapter folder that palate wrote, or hub id")
    parser.add_argument("--prompts", help=PROMPTS_HELP)
    parser.add_argument("--prompt", action="append", default=[], help="one prompt; may be repeated")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    add_drawing_options(parser)
    add_reno_options(parser)
    args = parser.parse_args(list(argv))
    if bool(args.prompts) == bool(args.prompt):
        raise UserError("Give either --prompts FILE or --prompt TEXT.")
    if not args.reno and any(vars(args)[name] is not None for name in vars(args) if name.startswith("reno.")):
        raise UserError("--reno.* are settings of --reno: give that too, or leave them out.")

    if args.reno and args.max_sequence_length:
        raise UserError("--reno draws with the pipeline's own --max-sequence-length: leave it out.")

    from t2i.sample import draw_folder, load_pipeline, read_prompts, repeat_prompts
    from t2i.train import quiet_libraries

    quiet_libraries()
    prompts = args.prompt or read_prompts(args.prompts, args.limit)
    wanted, seeds = repeat_prompts(prompts, args.per_prompt, args.seed)
    how = {**drawing_options(args), "progress": "sample"}
    if args.reno:
        how |= reno_options(args)  # first: a misspelt scorer should not cost the loading
    pipeline = load_pipeline(args.model, device=args.device)
    new = list(draw_folder(pipeline, wanted, seeds, args.out, model=args.model, **how))
    flagged = sum(sample.flagged for sample in new)
    note = reno_note(new) if args.reno else ""
    note += f" {flagged} were blacked out by the safety checker and are marked as flagged." * bool(flagged)
    print(f"{len(new)} new of {len(wanted)} images in {args.out}.{note}")


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command that draws has: how many images, from which seeds, and how."""
    parser.add_argument("--limit", type=int, default=0, help="use the first so many prompts (default: all)")
    parser.add_argument("--per-prompt", type=at_least_one, default=1, help="images per prompt and model (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image (default: 0)")
    parser.add_argument("--steps", type=at_least_one, default=25, help="denoising steps (default: 25)")
    parser.add_argument("--guidance", type=float, default=7.5, help="classifier-free guidance scale (default: 7.5)")
    parser.add_argument("--batch-size", type=at_least_one, default=16, help="images per forward (default: 16)")
    parser.add_argument(
        "--max-sequence-length",
        type=at_least_one,
        help="tokens of a prompt in the long text encoder of SD3, FLUX.1 or Sana (default: the pipeline's)",
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: the best there is)")


def drawing_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return how to draw, as `t2i.sample.draw_folder` takes it, from the parsed options of `add_drawing_options`."""
    how = {"steps": args.steps, "guidance": args.guidance, "batch_size": args.batch_size}
    return how if args.max_sequence_length is None else {**how, "max_sequence_length": args.max_sequence_length}


def at_least_one(text: str) -> int:
    """Return a whole number from the command line; argparse says what is wrong with any other."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def add_reno_options(parser: argparse.ArgumentParser) -> None:
    """Add what `--reno` is told; the defaults are those of `t2i.reno.Ascent`, which are the paper's."""
    reno = parser.add_argument_group("ReNO", "move the noise of a model of 1 to 4 steps towards higher rewards")
    reno.add_argument("--reno", action="store_true", help="optimise the noise of every image before it is drawn")
    reno.add_argument(
        "--reno.scorers",
        nargs="+",
        metavar="NAME=WEIGHT",
        help="rewards (default: hpsv2.1=5 imagereward=1 pickscore=0.05 clipscore-logits=0.01)",
    )
    reno.add_argument("--reno.iterations", type=int, help="images looked at for each sample (default: 50)")
    reno.add_argument("--reno.lr", type=float, help="step size of the ascent (default: 5)")
    reno.add_argument("--reno.clip", type=float, help="largest norm of a sample's gradient (default: 0.1)")
    reno.add_argument("--reno.regularizer", type=float, help="weight of the noise's likely norm (default: 0.01)")
    reno.add_argument("--reno.checkpointing", action="store_true", default=None, help="less memory, more time")


def reno_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `draw_folder` takes besides, for `--reno`."""
    from functools import partial

    from rewards import load_scorer
    from t2i.reno import Ascent, optimise
    from t2i.scoring import weighted

    names = ("iterations", "lr", "clip", "regularizer", "checkpointing")
    given = {name: getattr(args, f"reno.{name}") for name in names if getattr(args, f"reno.{name}") is not None}
    if getattr(args, "reno.scorers"):
        given["weights"] = weighted(getattr(args, "reno.scorers"))
    if given.get("iterations", 1) < 1:
        raise UserError(f"--reno.iterations must be at least 1, not {given['iterations']}.")
    ascent = Ascent(**given)
    scorers = {name: load_scorer(name, device=args.device) for name in ascent.weights}
    return {"by": partial(optimise, scorers=scorers, ascent=ascent), "made": ascent.made()}


def reno_note(new: Sequence[Sample]) -> str:
    """Return a sentence on what the ascent gained."""
    if not new:
        return ""
    before, after = (sum(s.extra[f"rewards_{when}"]["total"] for s in new) / len(new) for when in ("before", "after"))
    return f" Their mean reward rose from {before:.4f} to {after:.4f}."

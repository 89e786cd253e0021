"""`palate captions`: a caption of its own for each image of a pair, which DCPO trains on (`--data.captions dual`)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from apps.answerers import add_answerer_options, make_answerer
from palate.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Make what is missing, write the pairs, and say how many were left out and why."""
    args = make_parser().parse_args(list(argv))
    writes = args.method != "perturb" or args.writer
    if args.method == "perturb" and not args.writer and (args.model or args.endpoint):
        raise UserError(
            "perturb works by rules, without a model. Add --writer to let the model perturb, or leave it out."
        )
    if writes and not (args.model or args.endpoint):
        raise UserError(
            "Name who writes with --model (and --endpoint): a folder, a hub id, toy:vlm, or a served model."
        )
    if args.winner_only and args.method == "perturb":
        raise UserError("--winner-only with perturb leaves both images the prompt, which is --data.captions shared.")
    from apps.captioning import DESCRIBE, Paraphraser, Rules, caption_pairs
    from palate.readers import open_pairs
    from rewards import load_scorer

    scorer = load_scorer(args.scorer) if args.scorer else None
    pairs = open_pairs(
        args.data, format=args.format, split=args.split, limit=args.limit, ties=args.ties, on_bad_row=args.on_bad_row
    )
    print(pairs.summary())
    how = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "seed": args.seed}
    answerer = make_answerer(args, **how) if writes else None
    made = caption_pairs(
        pairs,
        args.out,
        args.method,
        captioner=answerer if args.method != "perturb" else None,
        question=args.question or DESCRIBE,
        perturber=Paraphraser(answerer, args.strength) if args.writer and answerer else Rules(args.strength, args.seed),
        winner_only=args.winner_only,
        scorer=scorer,
    )
    print(made)
    print(f"Pairs: {args.out}")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="palate captions", description=__doc__)
    parser.add_argument("--data", required=True, help="pairs of images (parquet, folder, hub id)")
    parser.add_argument("--out", required=True, type=Path, help=".parquet file, or folder, for the pairs")
    parser.add_argument(
        "--method",
        choices=("caption", "perturb", "hybrid"),
        default="perturb",
        help="caption: a model describes both images; perturb: the rejected image gets a changed prompt; hybrid: both are "
        "described, and the rejected one's description is changed (default: perturb)",
    )
    parser.add_argument(
        "--strength", choices=("weak", "medium", "strong"), default="medium", help="of a change (default: medium)"
    )
    parser.add_argument("--writer", action="store_true", help="let --model change captions (default: rules, no model)")
    parser.add_argument(
        "--question", help="what --model is asked about a picture (default: to describe it as a prompt)"
    )
    parser.add_argument("--winner-only", action="store_true", help="control: both sides get the chosen image's caption")
    parser.add_argument("--scorer", help="measure the similarity gap with this scorer, such as open_clip:ARCH:WEIGHTS")
    parser.add_argument("--format", default="auto", help="format of the data (default: told by its columns)")
    parser.add_argument("--split", default="train", help="split of a hub dataset (default: train)")
    parser.add_argument("--limit", type=int, help="use the first so many pairs (default: all)")
    parser.add_argument("--ties", choices=("soft", "drop", "error"), default="soft", help="default: soft")
    parser.add_argument("--on-bad-row", choices=("error", "skip"), default="error", help="default: error")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw (default: 0)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the model (default: 0)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest caption (default: 128)")
    add_answerer_options(parser, model="model that describes or rewrites: folder, hub id, toy:vlm")
    return parser

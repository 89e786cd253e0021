"""`palate export`: an arena's votes as training pairs, or its whole log."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apps.arena.serve import add_store_options, open_arena
from palate.errors import UserError

if TYPE_CHECKING:
    from apps.arena.service import Arena


def main(argv: Sequence[str]) -> None:
    """Write pairs, the log, or both, and say what became of the votes."""
    parser = argparse.ArgumentParser(
        prog="palate export",
        description=__doc__,
        epilog="Gold, withdrawn, excluded and both-bad votes are always left out of pairs; flagged, known_identity and "
        "repeat unless kept. The prompts of the training part are marked: `palate enter` does not let them judge.",
    )
    add_store_options(parser)
    parser.add_argument(
        "--out", type=Path, help="parquet file of training pairs; NAME.held_out.parquet comes beside it"
    )
    parser.add_argument(
        "--log", type=Path, help="folder or .zip for votes, events and prompts; `palate board` reads it"
    )
    parser.add_argument(
        "--kind", choices=("image", "text"), help="pairs of images or of answers (default: what there is)"
    )
    parser.add_argument(
        "--held-out", type=float, default=0.2, help="share of prompts kept from training (default: 0.2)"
    )
    parser.add_argument("--ties", choices=("drop", "soft"), default="drop", help="drop ties, or count them as 1/2")
    parser.add_argument("--min-agreement", type=float, default=0.0, help="least agreement of voters (default: 0)")
    parser.add_argument("--min-votes", type=int, default=1, help="least decided votes on two outputs (default: 1)")
    parser.add_argument(
        "--keep", action="append", default=[], help="use votes with this flag: flagged, known_identity, repeat"
    )
    args = parser.parse_args(list(argv))
    if not args.out and not args.log:
        raise UserError("Give --out PAIRS.parquet, --log FOLDER, or both.")
    if not args.store.is_dir():
        raise UserError(f"There is no arena at {args.store}. Give its folder as --store.")
    arena = open_arena(args.store, args.database)
    try:
        if args.log:
            from apps.arena.export.log import write_log

            print(f"Log: {write_log(arena.engine, arena.tokens, args.log)}")
        if args.out:
            _pairs(arena, args)
    finally:
        arena.close()


def _pairs(arena: Arena, args: argparse.Namespace) -> None:
    from apps.arena.export.training_pairs import Gates, collect, write

    kinds = sorted({prompt.kind for prompt in arena.catalog.prompts.values()})
    if not args.kind and len(kinds) > 1:
        raise UserError("This arena has battles of images and of answers. Say which: --kind image or --kind text.")
    kind = args.kind or (kinds or ["image"])[0]
    gates = Gates(args.ties, args.min_agreement, args.min_votes, args.keep)
    exported = collect(arena, kind, gates, args.held_out)
    for path, count in write(arena, exported, kind, args.out).items():
        print(f"{count} pairs: {path}")
    print(exported.summary)
    if exported.flagged:
        print("Set apart: " + ", ".join(f"{n} {flag}" for flag, n in sorted(exported.flagged.items())) + ".")

"""`palate enter`: add a model to an arena as a challenger, on prompts that it was not trained on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apps.arena.serve import add_store_options, open_arena
from apps.sample import add_drawing_options, drawing_options
from palate.errors import UserError

if TYPE_CHECKING:
    from apps.arena.service import Arena


def main(argv: Sequence[str]) -> None:
    """Enter outputs that exist, or draw them first; a running arena shows them within seconds."""
    parser = argparse.ArgumentParser(
        prog="palate enter",
        description=__doc__,
        epilog="Prompts that `palate export` wrote into training pairs are left out, so that no model is judged by what it "
        "learnt from. As long as a model has few battles, matchmaking prefers it.",
    )
    add_store_options(parser)
    parser.add_argument("--name", required=True, help="the challenger's name")
    parser.add_argument("--outputs", type=Path, help="what it made: a folder of `palate sample`, or answers as .jsonl")
    parser.add_argument("--model", help="pipeline or adapter folder: draw the arena's prompts with it")
    parser.add_argument("--not-trained-here", action="store_true", help="it never saw this arena's pairs: all prompts")
    add_drawing_options(parser)
    args = parser.parse_args(list(argv))
    if (args.outputs is None) == (args.model is None):
        raise UserError("Give either --outputs FOLDER or --model PATH.")
    if not args.store.is_dir():
        raise UserError(f"There is no arena at {args.store}. Give its folder as --store.")

    from apps.arena.packs.entering import enter, open_prompts
    from apps.arena.packs.sources import read_source

    arena = open_arena(args.store, args.database)
    try:
        outputs = args.outputs or _draw(arena, args, open_prompts(arena, "image", args.not_trained_here))
        made, flagged = read_source(outputs)
        entered = enter(arena, args.name, made, trained_elsewhere=args.not_trained_here)
    finally:
        arena.close()
    print(
        f"{args.name}: {entered.new} new outputs to {entered.prompts} prompts. Left out: {entered.trained} to training "
        f"prompts, {entered.unknown} to prompts that the arena does not have, {flagged} flagged."
    )


def _draw(arena: Arena, args: argparse.Namespace, prompts: list[str]) -> Path:
    """Draw the prompts into the store, resuming, and return the folder."""
    from t2i.sample import check_model, draw_folder, load_pipeline, repeat_prompts
    from t2i.train import quiet_libraries

    quiet_libraries()
    check_model(args.model)
    wanted, seeds = repeat_prompts(prompts[: args.limit] if args.limit else prompts, args.per_prompt, args.seed)
    how = drawing_options(args)
    folder = arena.folder / "drawn" / args.name.replace("/", "_")
    pipeline = load_pipeline(args.model, device=args.device)
    for _ in draw_folder(pipeline, wanted, seeds, folder, model=args.model, progress=f"draw {args.name}", **how):
        pass
    return folder

"""`palate pack`: outputs of several models -> a battle pack, from which `palate arena` serves without a GPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from apps.sample import add_drawing_options, drawing_options
from palate.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Make or extend a pack, and say what it holds."""
    parser = argparse.ArgumentParser(
        prog="palate pack",
        description=__doc__,
        epilog="A source is a folder that `palate sample` wrote, any folder of pictures, or a .jsonl, .csv or .tsv file of "
        "answers (image, question, answer). With --model, images are drawn first; that resumes, too.",
    )
    parser.add_argument("sources", nargs="*", metavar="NAME=SOURCE", help="a model's name and where its outputs lie")
    parser.add_argument("--out", required=True, type=Path, help="folder of the pack; one that exists is extended")
    parser.add_argument("--title", default="", help="title of the pack (default: the folder's name)")
    parser.add_argument("--category", default="", help="category of prompts that name none")
    parser.add_argument("--file-prompts", type=Path, help="table of file_name, prompt, category for plain folders")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=MODEL", help="draw with this pipeline")
    parser.add_argument("--prompts", help="with --model: file of prompts, or toy:held_out")
    parser.add_argument("--zip", action="store_true", help="write OUT.zip as well")
    add_drawing_options(parser)
    args = parser.parse_args(list(argv))
    if not args.sources and not args.model:
        raise UserError("Give sources as NAME=FOLDER, or models as --model NAME=MODEL with --prompts.")
    if bool(args.model) != bool(args.prompts):
        raise UserError("--model and --prompts go together: each model draws all the prompts.")
    named = [_split(word) for word in args.sources]
    models = [_split(word) for word in args.model]
    twice = {name for name, _ in [*named, *models] if [n for n, _ in [*named, *models]].count(name) > 1}
    if twice:
        raise UserError(f"Two sources are named {', '.join(sorted(twice))}. Give each model a name of its own.")

    from apps.arena.packs.packing import make_pack, zip_pack
    from apps.arena.packs.sources import read_prompt_list, read_source

    drawn = _draw(args, models) if models else []
    prompts = read_prompt_list(args.file_prompts) if args.file_prompts else None
    read = {name: read_source(Path(path), prompts) for name, path in [*named, *drawn]}
    flagged = sum(left_out for _, left_out in read.values())
    packed = make_pack(
        args.out, {name: made for name, (made, _) in read.items()}, title=args.title, category=args.category
    )
    print(
        f"{packed.outputs} outputs ({packed.new} new) to {packed.prompts} prompts in {args.out}; "
        f"{packed.battles} prompts have outputs of two models or more."
        + (f" {flagged} flagged images were left out." if flagged else "")
    )
    if args.zip:
        print(f"Zip: {zip_pack(args.out)}")


def _split(word: str) -> tuple[str, str]:
    name, sign, rest = word.partition("=")
    if not sign or not name.strip() or not rest:
        raise UserError(f"'{word}' should read NAME=SOURCE, such as base=samples/base.")
    return name.strip(), rest


def _draw(args: argparse.Namespace, models: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Draw the prompts with each model into a folder beside the pack, and return the folders."""
    from t2i.sample import check_model, draw_folder, load_pipeline, read_prompts, repeat_prompts
    from t2i.train import quiet_libraries

    quiet_libraries()
    for _, source in models:
        check_model(source)
    wanted, seeds = repeat_prompts(read_prompts(args.prompts, args.limit), args.per_prompt, args.seed)
    how = drawing_options(args)
    folders = []
    for name, source in models:
        folder = args.out.with_name(f"{args.out.name}.drawn") / name
        pipeline = load_pipeline(source, device=args.device)
        for _ in draw_folder(pipeline, wanted, seeds, folder, model=source, progress=f"draw {name}", **how):
            pass
        folders.append((name, str(folder)))
    return folders

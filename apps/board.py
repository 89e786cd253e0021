"""`palate board`: compute every number of the arena's board again from an exported log of votes."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from palate.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Read the log, write the board, and print the table."""
    parser = argparse.ArgumentParser(prog="palate board", description=__doc__)
    parser.add_argument(
        "--log", required=True, type=Path, help="votes.jsonl, .csv or .parquet, or a folder or zip of it"
    )
    parser.add_argument(
        "--out", action="append", type=Path, default=[], help="board.html or board.json; may be repeated"
    )
    parser.add_argument("--ties", choices=("davidson", "half"), default="davidson", help="how ties enter the ratings")
    parser.add_argument("--level", type=float, default=0.95, help="probability of the intervals (default: 0.95)")
    parser.add_argument("--alpha", type=float, default=0.05, help="error of the test of a pair (default: 0.05)")
    parser.add_argument(
        "--control", action="append", default=[], help="measure to hold equal, side, or all; may be repeated"
    )
    parser.add_argument("--bootstraps", type=int, default=1000, help="resampled boards (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default: 0)")
    parser.add_argument("--title", default="Arena", help="of the page")
    args = parser.parse_args(list(argv))
    for out in args.out:
        if out.suffix not in (".html", ".json"):
            raise UserError(f"--out {out} must end in .html or .json.")

    from apps.arena.ratings.board import board
    from apps.arena.ratings.log import read_log
    from apps.arena.ratings.page import page

    made = board(
        read_log(args.log),
        ties=args.ties,
        level=args.level,
        alpha=args.alpha,
        control=args.control,
        bootstraps=args.bootstraps,
        seed=args.seed,
        title=args.title,
    )
    plain = made.as_dict()
    for out in args.out:
        text = page(plain) if out.suffix == ".html" else json.dumps(plain, ensure_ascii=False, indent=1) + "\n"
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(out.name + ".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, out)
    print(f"{made.counted} of {made.total} votes count, by {made.overall.voters} people.")
    for row in made.overall.rows:
        ranks = f"{row.rank_best}-{row.rank_worst}"
        print(f"{ranks:>6}  {row.rating:7.1f} [{row.low:.1f}, {row.high:.1f}]  {row.votes:6d} votes  {row.model}")
    for notice in made.overall.notices:
        print(notice)
    for out in args.out:
        print(f"Board: {out}")

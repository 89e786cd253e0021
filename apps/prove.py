"""The long proofs: every method on the toy world, three seeds, all printed. `make prove` runs them.

    python -m apps.prove --out runs/prove --write docs/proofs.md

A run that is done is not run again, so the command resumes; it exits with 1 where a claim does not hold. With `--only`
the other sections of the page stay as they are.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from apps import prove_rewards, prove_t2i, prove_vlm
from apps.trials import add_setting, commits, made_with, setting_of
from palate.errors import run

TITLE = "# Proofs on the toy world"
HEADINGS = {"t2i": "Text to image", "vlm": "Vision-language", "rewards": "Reward models"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, print every seed, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m apps.prove", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--only", choices=tuple(HEADINGS), help="run one section (default: all)")
    add_setting(parser, "runs/prove")
    args = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    sections: dict[str, list[str]] = {}
    failures: list[str] = []
    if args.only in (None, "t2i"):
        setting = setting_of(args)
        drawn = prove_t2i.run(setting, args.seeds)
        bad = prove_t2i.failed(drawn, args.seeds)
        words = [claim.words for claim in prove_t2i.CLAIMS]
        sections["t2i"] = section(drawn, prove_t2i.table(drawn, args.seeds, setting), words, bad)
        failures += bad
    if args.only in (None, "vlm"):
        told = prove_vlm.run(args.out / "vlm", args.seeds, args.jobs)
        bad = prove_vlm.failed(told, args.seeds)
        words = [claim.words for claim in prove_vlm.CLAIMS]
        sections["vlm"] = section(told, prove_vlm.table(told, args.seeds), words, bad)
        failures += bad
    if args.only in (None, "rewards"):
        learned = prove_rewards.run(args.out / "rewards", args.seeds, args.jobs)
        bad = prove_rewards.failed(learned, args.seeds)
        words = [claim.words for claim in prove_rewards.CLAIMS]
        sections["rewards"] = section(learned, prove_rewards.table(learned, args.seeds), words, bad)
        failures += bad
    if args.write:
        old = args.write.read_text(encoding="utf-8") if args.write.exists() else ""
        args.write.write_text(page(sections, old), encoding="utf-8")
    print("\n".join(f"FAILS: {failure}" for failure in failures) or "All claims hold.")
    if failures:
        sys.exit(1)


def section(
    results: Mapping[str, Sequence[Any]], table: Sequence[str], claims: Sequence[str], failures: Sequence[str]
) -> list[str]:
    """Return the lines of a section: what made it, its table, and which of its claims hold."""
    lines = [f"Written by `make prove` with {made_with()}; the trials ran at {commits(results)}.", "", *table]
    lines += ["", "### Claims", ""]
    for words in claims:
        bad = [failure.split(":")[0] for failure in failures if failure.endswith(words)]
        lines.append(f"- {'does not hold for ' + ', '.join(bad) if bad else 'holds for every seed'}: {words}.")
    return lines


def page(sections: Mapping[str, Sequence[str]], old: str) -> str:
    """Return the page: new sections, and those of the old page that were not made anew."""
    kept = dict(re.findall(r"^## (.+)\n\n((?:(?!## ).*\n)*)", old, re.MULTILINE))
    parts = [TITLE]
    for name, heading in HEADINGS.items():
        text = "\n".join(sections[name]) if name in sections else kept.get(heading, "").strip()
        if text:
            parts.append(f"## {heading}\n\n{text}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    run(main)

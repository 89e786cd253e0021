"""The long proof of the learned scorer: trained on the toy's votes, how near does it come to the taste behind them?

    python -m apps.prove_rewards --out runs/prove_rewards --write docs/proofs-rewards.md

Votes are cast on rendered battles; the scorer starts as the toy's model, which knows captions and no taste. It is judged by
votes on new battles, of prompts that it was trained on and of prompts that no part of it has seen. A run that is done is
not run again; the command exits with 1 where the claim does not hold.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palate.errors import run
from palate.statistics import Estimate

SHARE = 0.9
"""What the learned scorer must reach of the accuracy that the hidden taste has."""
TESTS = {"new battles": ("train", 1000), "new prompts": ("held_out", 0)}
"""Held-out votes -> (split of the prompts, what is added to the seed of the battles)."""
SCORERS = ("learned", "toy", "toy-taste")


@dataclass(frozen=True)
class Result:
    """One seed under one test."""

    seed: int
    test: str
    accuracy: dict[str, Estimate]

    @property
    def share(self) -> float:
        """Accuracy of the learned scorer as a share of the hidden taste's."""
        return self.accuracy["learned"].value / self.accuracy["toy-taste"].value


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, print every seed, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m apps.prove_rewards", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/prove_rewards"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--battles", type=int, default=16_000, help="battles to train on (default: 16000)")
    parser.add_argument("--steps", type=int, default=750, help="optimiser steps of 64 pairs (default: 750)")
    parser.add_argument("--test", type=int, default=1000, help="battles of each test (default: 1000)")
    parser.add_argument("--votes", type=int, default=5, help="votes on each battle (default: 5)")
    parser.add_argument("--write", type=Path, help="Markdown file to write")
    args = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    results = [result for seed in args.seeds for result in prove(seed, args)]
    text = page(results, args)
    print(text)
    if args.write:
        args.write.write_text(text, encoding="utf-8")
    if any(result.share < SHARE for result in results):
        sys.exit(1)


def prove(seed: int, args: argparse.Namespace) -> list[Result]:
    """Train on the votes of one seed and return the accuracies under each test."""
    from palate.config import load_config
    from rewards.settings import RewardConfig
    from rewards.train import train

    folder = args.out / f"seed-{seed}"
    votes = cast(folder / "train.parquet", args.battles, seed, "train", args.votes)
    words = ["--config", "toy/rewards", "--data.path", str(votes), "--out", str(folder / "run"), "--resume", "auto"]
    words += ["--train.steps", str(args.steps), "--train.seed", str(seed)]
    outcome = train(*load_config(RewardConfig, words, "rewards.train"))
    return [judge(seed, test, str(outcome.best), folder, args) for test in TESTS]


def cast(path: Path, count: int, seed: int, split: str, votes: int) -> Path:
    """Write the votes of a population on rendered battles as pairs, unless the file is there."""
    from palate.readers import write_pairs
    from palate.toy.battles import battles
    from palate.toy.voters import cast_votes, population
    from palate.votes import votes_to_pairs

    if not path.exists():
        cast = cast_votes(battles(count, seed, split), population(50, 0), seed, votes_per_battle=votes)  # type: ignore[arg-type]
        pairs, summary = votes_to_pairs(cast, ties="soft")
        print(summary)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pairs(pairs, path)
    return path


def judge(seed: int, test: str, learned: str, folder: Path, args: argparse.Namespace) -> Result:
    """Return the accuracies on held-out votes: label ties left out, equal scores half, intervals over prompts."""
    from rewards import load_scorer
    from rewards.benchmark.cases import open_cases
    from rewards.benchmark.results import compute
    from rewards.benchmark.scoring import score_cases

    split, shift = TESTS[test]
    name = test.replace(" ", "-")
    cases = open_cases(str(cast(folder / f"{name}.parquet", args.test, seed + shift, split, args.votes)))
    scorers = [
        load_scorer(learned, device="cpu", name="learned"),
        load_scorer("toy", device="cpu"),
        load_scorer("toy-taste"),
    ]
    found = compute(score_cases(cases, scorers, folder / name), "decisive", baselines=[])
    return Result(seed, test, {row.name: row.accuracy for row in found.rows})


def page(results: Sequence[Result], args: argparse.Namespace) -> str:
    """Return the page in Markdown."""
    import torch

    head = "| votes on | seed | learned scorer | model that it started from | hidden taste | learned / taste |"
    rows = [
        f"| {r.test} | {r.seed} | {' | '.join(str(r.accuracy[name]) for name in SCORERS)} | {100 * r.share:.1f} % |"
        for r in results
    ]
    holds = "holds" if all(result.share >= SHARE for result in results) else "FAILS"
    return "\n".join(
        [
            "# Proof: a scorer learns the toy's taste from votes",
            "",
            f"Written by `python -m apps.prove_rewards` with torch {torch.__version__}, Python {platform.python_version()}, "
            f"on {'a GPU' if torch.cuda.is_available() else 'a CPU'}.",
            "",
            f"{args.votes} of 50 synthetic voters judge each of {args.battles} rendered battles. The toy's CLIP is trained "
            f"on them for {args.steps} steps of 64 pairs by the recipe `toy/rewards`; its best model on held-out prompts is "
            f"judged by the votes on {args.test} new battles. Majorities that are ties are left out; intervals resample "
            "prompts. The hidden taste is what the voters share, each in a mixture of their own and with noise.",
            "",
            head,
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"- {holds} for every seed: the learned scorer reaches at least {100 * SHARE:.0f} % of the accuracy that the "
            "hidden taste allows.",
            "",
        ]
    )


if __name__ == "__main__":
    run(main)

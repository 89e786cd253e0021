"""The section of the proofs on reward models: a scorer that learns from votes comes near the taste behind them.

The scorer starts as the toy's model, which knows captions and no taste. It is judged by votes on new battles, of prompts
that it was trained on and of prompts that no part of it has seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.trials import Setting, Trial, commit, side_by_side
from palate.errors import UserError
from palate.statistics import Estimate, estimate_of

if TYPE_CHECKING:
    from palate.toy.grammar import Split

TRIAL = Trial("Learned scorer", "toy/rewards", ("--train.steps", "1500"))
BATTLES, HELD_OUT, VOTES = 32_000, 3000, 5
TESTS: Mapping[str, tuple[Split, int]] = {"new battles": ("train", 1000), "new prompts": ("held_out", 0)}
"""Held-out votes -> (split of the prompts, what is added to the seed of the battles)."""
SCORERS = ("learned", "toy", "toy-taste")
SHARE = 0.9
"""What the learned scorer must reach of the hidden taste's accuracy."""


@dataclass(frozen=True)
class Result:
    """Accuracies of one seed, and what made them."""

    accuracy: Mapping[str, Mapping[str, Estimate]]
    """Test -> scorer -> accuracy."""
    seconds: float
    """Seconds of training, evaluations included."""
    made_of: Mapping[str, Any]
    """The commit, and what the trial was told."""

    def share(self, test: str) -> float:
        """Return the learned scorer's accuracy as a share of the hidden taste's."""
        found = self.accuracy[test]
        return found["learned"].value / found["toy-taste"].value

    def write(self, path: Path) -> None:
        """Write as JSON."""
        accuracy = {test: {name: e.as_dict() for name, e in found.items()} for test, found in self.accuracy.items()}
        path.write_text(json.dumps({**vars(self), "accuracy": accuracy}), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        accuracy = {test: {n: estimate_of(e) for n, e in found.items()} for test, found in data["accuracy"].items()}
        return cls(**{**data, "accuracy": accuracy})


Results = Mapping[str, Sequence[Result]]
"""Trial name -> one result a seed."""


@dataclass(frozen=True)
class Claim:
    """Something that must hold for every seed."""

    words: str
    test: str


CLAIMS = tuple(
    Claim(f"on {test} the learned scorer reaches at least {100 * SHARE:.0f} % of the hidden taste's accuracy", test)
    for test in TESTS
)


def run(out: Path, seeds: Sequence[int], jobs: int) -> Results:
    """Run what is missing and return the results."""
    setting = Setting(out, pairs=BATTLES, held_out=HELD_OUT, jobs=jobs)
    return side_by_side([TRIAL], seeds, setting, prepare, run_trial, _told)


def failed(results: Results, seeds: Sequence[int]) -> list[str]:
    """Return what does not hold, by seed."""
    return [
        f"seed {seed}: {claim.words}"
        for claim in CLAIMS
        for seed, result in zip(seeds, results[TRIAL.name], strict=True)
        if not result.share(claim.test) >= SHARE
    ]


def table(results: Results, seeds: Sequence[int]) -> list[str]:
    """Return the lines on how it was done, and the table."""
    lines = [
        f"{VOTES} of 50 synthetic voters judge each of {BATTLES:,} rendered battles. The toy's CLIP is trained on their "
        f"votes by the recipe `{TRIAL.recipe}`, in {TRIAL.overrides[1]} steps; its best model on prompts kept from it, "
        f"by the loss, is judged by the votes on {HELD_OUT:,} new battles of the same prompts, and as many of prompts that "
        "nothing was trained on. "
        "Voters share the hidden taste, each in a mixture of their own and with noise, so that the taste itself does not "
        "always agree with them: its accuracy is what can be asked for. Majorities that are ties are left out; intervals "
        "are 95 % and resample prompts. Seeds change the battles, the votes and the training. Recipe and toy CLIP were "
        "chosen on 1,000 battles of each kind of seed 0, after an earlier recipe had missed the aim on all three.",
        "",
        "| votes on | seed | learned scorer | model that it started from | hidden taste | learned / taste | training, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for test in TESTS:
        for seed, result in zip(seeds, results[TRIAL.name], strict=True):
            found = " | ".join(str(result.accuracy[test][name]) for name in SCORERS)
            lines.append(f"| {test} | {seed} | {found} | {100 * result.share(test):.1f} % | {result.seconds:.0f} |")
    return lines


def prepare(seed: int | None, setting: Setting) -> None:
    """Cast the votes of a seed, those to train on and those of the tests."""
    if seed is None:
        return
    folder = setting.out / f"seed{seed}"
    cast(folder / "train.parquet", setting.pairs, seed, "train")
    for test, (split, shift) in TESTS.items():
        cast(_path(folder, test), setting.held_out, seed + shift, split)


def cast(path: Path, count: int, seed: int, split: Split) -> None:
    """Write the votes of a population on rendered battles as pairs, unless the file is there."""
    from palate.readers import write_pairs
    from palate.toy.battles import battles
    from palate.toy.voters import cast_votes, population
    from palate.votes import votes_to_pairs

    if path.exists():
        return
    votes = cast_votes(battles(count, seed, split), population(50, 0), seed, votes_per_battle=VOTES)
    pairs, _ = votes_to_pairs(votes, ties="soft")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pairs(pairs, path)


def run_trial(trial: Trial, seed: int, setting: Setting) -> Result:
    """Train on the votes of one seed and return the accuracies under each test."""
    from palate.config import load_config
    from rewards.settings import RewardConfig
    from rewards.train import train

    folder = setting.out / f"seed{seed}"
    done = folder / f"{trial.slug}.json"
    numbers = {"battles": setting.pairs, "held_out": setting.held_out, "votes": VOTES}
    made_of = {**trial.made_of, **numbers}
    if done.exists():
        result = Result.read(done)
        if {**result.made_of, "commit": ""} != {**made_of, "commit": ""}:
            raise UserError(f"{done} is of another trial. Give another --out.")
        return result
    words = ["--config", trial.recipe, "--data.path", str(folder / "train.parquet"), "--out", str(folder / trial.slug)]
    words += ["--train.cpu", "true", "--train.seed", str(seed), "--resume", "auto", *trial.overrides]
    began = time.monotonic()
    outcome = train(*load_config(RewardConfig, words, "rewards.train"))
    seconds = time.monotonic() - began
    accuracy = {test: judge(_path(folder, test), str(outcome.best)) for test in TESTS}
    result = Result(accuracy, seconds, {**made_of, "commit": commit()})
    result.write(done)
    return result


def judge(votes: Path, learned: str) -> dict[str, Estimate]:
    """Return each scorer's accuracy on held-out votes: label ties left out, equal scores half, intervals over prompts."""
    from rewards import load_scorer
    from rewards.benchmark.cases import open_cases
    from rewards.benchmark.results import compute
    from rewards.benchmark.scoring import score_cases

    scorers = [
        load_scorer(learned, device="cpu", name="learned"),
        load_scorer("toy", device="cpu"),
        load_scorer("toy-taste"),
    ]
    scored = score_cases(open_cases(str(votes)), scorers, votes.with_suffix(".scores"))
    return {row.name: row.accuracy for row in compute(scored, "decisive", baselines=[]).rows}


def _path(folder: Path, test: str) -> Path:
    return folder / f"{test.replace(' ', '-')}.parquet"


def _told(result: Result) -> str:
    return ", ".join(f"{result.share(test):.1%} of the taste's accuracy on {test}" for test in TESTS)

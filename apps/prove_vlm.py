"""The vision-language section of the proofs: methods that must cut hallucination on the toy world, beside controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.trials import Setting, side_by_side
from apps.vlm_trials import VLMResult, VLMTrial, prepare, run_trial

METHODS = ("POVID", "BPO", "mDPO")
TRIALS = (
    VLMTrial("POVID", "toy/vlm_povid", "povid"),
    VLMTrial("BPO", "toy/vlm_bpo", "bpo"),
    VLMTrial("mDPO", "toy/vlm_mdpo", "own"),
    VLMTrial("DPO", "toy/vlm_dpo", "own"),
    VLMTrial("DPO, random thing injected", "toy/vlm_dpo", "random"),
    VLMTrial("DPO, one thing swapped", "toy/vlm_dpo", "swap"),
)
PICTURES, HELD_OUT = 512, 400
MARGIN = 0.02
"""Recall that may be lost, as a share."""

Results = Mapping[str, Sequence[VLMResult]]
"""Trial name -> one result a seed."""


@dataclass(frozen=True)
class Claim:
    """Something that must hold for every seed."""

    words: str
    holds: Callable[[VLMResult], bool]
    of: str
    """Name of the trial."""


def _cuts_a_third(result: VLMResult) -> bool:
    base, trained = result.base["answers"], result.trained["answers"]
    return trained.value <= 2 / 3 * base.value and trained.high < base.low


def _keeps_recall(result: VLMResult) -> bool:
    return result.recall_change.low >= -MARGIN


CLAIMS = tuple(
    claim
    for name in METHODS
    for claim in (
        Claim(
            f"{name} cuts the share of hallucinating answers by a third or more, intervals apart", _cuts_a_third, name
        ),
        Claim(f"{name} loses at most 2 points of recall (lower end of the paired change)", _keeps_recall, name),
    )
)


def run(out: Path, seeds: Sequence[int], jobs: int) -> Results:
    """Run what is missing and return the results."""
    setting = Setting(out, pairs=PICTURES, held_out=HELD_OUT, jobs=jobs)
    return side_by_side(TRIALS, seeds, setting, prepare, run_trial, _told)


def failed(results: Results, seeds: Sequence[int]) -> list[str]:
    """Return what does not hold, by seed."""
    return [
        f"seed {seed}: {claim.words}"
        for claim in CLAIMS
        for seed, result in zip(seeds, results[claim.of], strict=True)
        if not claim.holds(result)
    ]


def table(results: Results, seeds: Sequence[int]) -> list[str]:
    """Return the lines on how it was done, and the table."""
    base = results[TRIALS[0].name][0].base
    lines = [
        "The miniature vision-language model ([the toy world](toy.md)) describes pictures of coloured shapes, and names "
        f"shapes that are not there. Each trial trains it on pairs of answers about {PICTURES} training pictures, true "
        f"descriptions being chosen; then base and trained model describe the same {HELD_OUT} held-out pictures, whose "
        "sets of shapes training never saw, most likely words first. What is in a picture is known exactly.",
        "POVID: a writer that sees no picture names shapes that often go with those of the true answer, and the tokens "
        "that the model likes best under noise are rejected too. BPO: what the model says under heavy noise, and what a "
        "writer rewrites. mDPO and DPO: what the model itself said falsely of the training pictures, at temperature 1. "
        "The controls know nothing of what the model tends to hallucinate: a random absent shape is named too, or one "
        "shape is swapped for an absent one, which keeps the length. Where a control cuts as much as a method, the "
        "method's choice of rejected answers is not what did it; recall and length show what naming less costs.",
        "Seeds change the training pictures, the rejected answers and the training; the held-out pictures are the same. "
        "Learning rate and steps were chosen on seed 0, before seeds 1 and 2 were run. Intervals are 95 %, clustered by "
        "picture; the change of recall is paired.",
        "",
        "| method | seed | answers that hallucinate | hallucinated mentions | recall | change of recall, points "
        "| shapes named | answers that hallucinate at temperature 1 | pairs | training, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| base | | {_figures(base)} | | {base['length']} | {base['sampled']} | | |",
    ]
    for trial in TRIALS:
        for seed, r in zip(seeds, results[trial.name], strict=True):
            t, change = r.trained, r.recall_change
            moved = f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
            lines.append(
                f"| {trial.name} | {seed} | {_figures(t)} | {moved} | {t['length']} | {t['sampled']} | {r.pairs} "
                f"| {r.seconds:.0f} |"
            )
    return lines


def _figures(truth: Mapping[str, object]) -> str:
    return " | ".join(str(truth[name]) for name in ("answers", "mentions", "recall"))


def _told(result: VLMResult) -> str:
    return f"{result.trained['answers']} of answers hallucinate, base {result.base['answers'].value:.1%}"

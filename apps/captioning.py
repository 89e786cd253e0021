"""Dual captions for pairs of images, as DCPO trains on: each side of a pair gets a caption of its own (2502.06023).

caption   a model describes both images
perturb   the chosen image keeps the prompt, the rejected one gets a perturbed prompt
hybrid    a model describes both images, and the rejected one's description is perturbed
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

from tqdm.auto import tqdm

from palate.checking import digest
from palate.conversations import Message
from palate.errors import UserError
from palate.kept import FAILURE
from palate.readers import BadRow, PairDataset, write_pairs
from palate.records import Pair
from palate.statistics import Estimate, mean_interval
from vlm.answering import Answerer, Ask, answer_file
from vlm.rejected.lexicon import Lexicon
from vlm.rejected.swap import swap
from vlm.rejected.writing import read_reply

Method = Literal["caption", "perturb", "hybrid"]
Strength = Literal["weak", "medium", "strong"]
METHODS: tuple[Method, ...] = get_args(Method)
STRENGTHS: tuple[Strength, ...] = get_args(Strength)

DESCRIBE = "Describe this picture in one sentence, as a prompt from which it could be drawn. Say only what can be seen."
RATES: dict[Strength, float] = {"weak": 0.2, "medium": 0.5, "strong": 1.0}
"""Strength -> share of the listed words that the rules swap; at least one is swapped."""
AMOUNTS: dict[Strength, str] = {
    "weak": "exactly one detail, such as a colour, a count or a place,",
    "medium": "about half of the details",
    "strong": "most of the details, and the main subject,",
}
PERTURB = (
    "Below is the caption of a picture. Write the caption of another picture that is like it: change {amount} and keep the "
    "rest, the style and the length. Put the new caption between <answer> and </answer>, and write nothing else.\n\n"
    "Caption: {caption}"
)
Caption: TypeAlias = tuple[str, str]
"""A caption, or why there is none."""
_AT_ONCE = 64  # pairs whose images are in memory
_IN_BRACES = re.compile(r"\{(\w+)\}")


class Perturber(Protocol):
    """Changes captions."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes what it makes, as JSON can hold it."""
        ...

    def perturb(self, captions: Sequence[str], kept: Path) -> list[Caption]:
        """Return (perturbed caption, or why there is none) for each; what costs something is kept in the file."""
        ...


@dataclass(frozen=True)
class Rules:
    """Listed objects, attributes, relations and counts swapped for others of their kind. It needs no model."""

    strength: Strength = "medium"
    seed: int = 0
    lexicon: Lexicon | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"perturber": "rules", "strength": self.strength, "seed": self.seed}

    def perturb(self, captions: Sequence[str], kept: Path) -> list[Caption]:
        rate = RATES[self.strength]
        swapped = [swap(c, seed=self.seed, name=c, rate=rate, lexicon=self.lexicon) for c in captions]
        return [(text, "" if changes else "no word of the lists is in it") for text, changes in swapped]


@dataclass(frozen=True)
class Paraphraser:
    """A language model that rewrites captions: a local one, or an endpoint."""

    writer: Answerer
    strength: Strength = "medium"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"perturber": dict(self.writer.settings), "strength": self.strength, "prompt": digest([PERTURB])}

    def perturb(self, captions: Sequence[str], kept: Path) -> list[Caption]:
        asks = [Ask(digest([caption]), (Message.user(self._prompt(caption)),)) for caption in captions]
        found = []
        for caption, row in zip(captions, answer_file(self.writer, asks, kept, progress="perturb"), strict=True):
            text, why = read_reply(row.get("answer", "")), row.get(FAILURE, "")
            if not why and (not text or row.get("finish") == "length"):
                why = "the reply is empty or was cut"
            elif not why and text == caption:
                why = "the reply changes nothing"
            found.append((text, why))
        return found

    def _prompt(self, caption: str) -> str:
        fields = {"amount": AMOUNTS[self.strength], "caption": caption}
        return _IN_BRACES.sub(lambda match: fields[match[1]], PERTURB)


@dataclass(frozen=True)
class Captioned:
    """What a run made. `left_out` is reason -> how many pairs; `gap` is only known where there was a scorer."""

    pairs: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    gap_before: Estimate | None = None
    """Mean of score(chosen image, prompt) - score(rejected image, prompt)."""
    gap_after: Estimate | None = None
    """The same with each image's own caption."""
    unit: str = ""

    def __str__(self) -> str:
        """Return the report of the command line."""
        lines = [f"{self.pairs:,} pairs with a caption for each image"]
        if self.gap_before is not None:
            lines.append(
                f"similarity gap ({self.unit}), chosen - rejected: with the prompt {self.gap_before}, with own captions "
                f"{self.gap_after}"
            )
        lines += [f"{count:,} left out: {reason}" for reason, count in self.left_out.items()]
        return "\n".join(lines)


def caption_pairs(
    pairs: PairDataset,
    out: str | Path,
    method: Method,
    *,
    captioner: Answerer | None = None,
    question: str = DESCRIBE,
    perturber: Perturber | None = None,
    winner_only: bool = False,
    scorer: Any = None,
) -> Captioned:
    """Write the pairs with dual captions to `out` as `write_pairs` does, and say how it went.

    captioner: for `caption` and `hybrid`; it is asked `question` about each picture. perturber: for `perturb` and
    `hybrid`. winner_only: give both sides the chosen image's caption, the control of DCPO. scorer: measures the
    similarity gap (`rewards.load_scorer`).

    What a model wrote lies in OUT.captions.jsonl and OUT.perturbed.jsonl; a run that was killed goes on there. Raises
    UserError where no pair came about.
    """
    out = Path(out)
    left_out: Counter[str] = Counter()
    if method == "perturb":
        known = {n: ((pair.prompt, ""), (pair.prompt, "")) for n, pair in _readable(pairs, left_out)}
    else:
        assert captioner is not None
        known = _described(pairs, captioner, question, out.with_name(f"{out.name}.captions.jsonl"), left_out)
    if winner_only:
        known = {n: (chosen, chosen) for n, (chosen, _) in known.items()}
    elif method != "caption":
        assert perturber is not None
        distinct = list(dict.fromkeys(text for _, (text, why) in known.values() if not why))
        changed = perturber.perturb(distinct, out.with_name(f"{out.name}.perturbed.jsonl"))
        by_text = dict(zip(distinct, changed, strict=True))
        known = {n: (chosen, second if second[1] else by_text[second[0]]) for n, (chosen, second) in known.items()}
    made: dict[str, Any] = {"method": method, "winner_only": winner_only}
    if captioner is not None and method != "perturb":
        made |= {"captioner": dict(captioner.settings), "question": question}
    if perturber is not None and method != "caption" and not winner_only:
        made |= perturber.settings
    left_out.update(why for sides in known.values() if (why := sides[0][1] or sides[1][1]))
    finished = {n: (first[0], second[0]) for n, (first, second) in known.items() if not first[1] and not second[1]}
    if not finished:
        raise UserError("No pair got its captions. " + " ".join(f"{n:,}: {why}." for why, n in left_out.most_common(5)))

    def dual(numbers: Sequence[int]) -> Iterator[Pair]:
        for number in numbers:
            pair, (chosen, rejected) = pairs.record(number), finished[number]
            yield replace(pair, prompt_chosen=chosen, prompt_rejected=rejected, meta={**pair.meta, "captions": made})

    count = write_pairs(dual(list(finished)), out)
    left = dict(left_out.most_common())
    if scorer is None:
        return Captioned(count, left)
    gaps: list[tuple[float, float]] = []
    prompts: list[str] = []
    measured = dual(list(finished))
    bar = tqdm(total=count, desc="similarity gap", unit="pair")
    while some := list(islice(measured, _AT_ONCE)):
        gaps += zip(_gap(some, scorer, own=False), _gap(some, scorer, own=True), strict=True)
        prompts += [pair.prompt for pair in some]
        bar.update(len(some))
    bar.close()
    before, after = (mean_interval([gap[k] for gap in gaps], clusters=prompts) for k in (0, 1))
    return Captioned(count, left, before, after, scorer.unit)


def _readable(pairs: PairDataset, left_out: Counter[str]) -> Iterator[tuple[int, Pair]]:
    for number in range(len(pairs)):
        try:
            yield number, pairs.record(number)
        except BadRow as error:
            if pairs.on_bad_row == "error":
                raise UserError(f"{error} Or leave such rows out with --on-bad-row skip.") from None
            left_out[error.reason] += 1


def _described(
    pairs: PairDataset, captioner: Answerer, question: str, kept: Path, left_out: Counter[str]
) -> dict[int, tuple[Caption, Caption]]:
    """Return the captions of each pair's pictures; one that is in several pairs is described once."""
    said: dict[str, Caption] = {}
    found: dict[int, tuple[Caption, Caption]] = {}
    with tqdm(total=len(pairs), desc="describe", unit="pair") as bar:
        readable = _readable(pairs, left_out)
        while some := list(islice(readable, _AT_ONCE)):
            pictures = {media.id: media for _, pair in some for media in (pair.chosen, pair.rejected)}
            asks = [
                Ask(name, (Message.user(question, 1),), (media,))
                for name, media in pictures.items()
                if name not in said
            ]
            for row in answer_file(captioner, asks, kept):
                text, why = row.get("answer", "").strip(), row.get(FAILURE, "")
                if not why and (not text or row.get("finish") == "length"):
                    why = "the description is empty or was cut; allow more new tokens"
                said[row["id"]] = (text, why)
            found |= {number: (said[pair.chosen.id], said[pair.rejected.id]) for number, pair in some}
            bar.update(len(some))
    return found


def _gap(pairs: Sequence[Pair], scorer: Any, *, own: bool) -> list[float]:
    """Return chosen minus rejected score of each pair, with the images' own captions or the prompt."""
    prompts = [[p.prompt_chosen or p.prompt, p.prompt_rejected or p.prompt] if own else [p.prompt] * 2 for p in pairs]
    images = [media.decode() for pair in pairs for media in (pair.chosen, pair.rejected)]
    values = scorer.score([text for two in prompts for text in two], images).values
    return [float(values[2 * n]) - float(values[2 * n + 1]) for n in range(len(pairs))]

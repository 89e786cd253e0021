"""Pairs of answers examined before they are trained on: what would stop a run, and what would spoil it."""

from __future__ import annotations

from collections.abc import Iterable
from sys import maxsize
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from palate.conversations import AnswerPair
from palate.errors import UserError
from palate.findings import Findings
from palate.readers.answers import AnswerDataset
from palate.readers.reader import BadRow
from palate.statistics import mean_interval
from vlm.batch import Encoded
from vlm.encoding import Encoder

if TYPE_CHECKING:
    from PIL import Image

    from vlm.loading import Loaded

BIASED = 0.1
"""Difference of mean lengths, as a share of the chosen answers', that is worth a warning."""


def examine(
    pairs: AnswerDataset[AnswerPair],
    loaded: Loaded | None = None,
    *,
    max_length: int = 2048,
    held_out: AnswerDataset[AnswerPair] | None = None,
) -> Findings:
    """Return what is wrong with pairs, opened with bad rows skipped: unreadable images and rows, equal answers, pairs
    that come again, lengths that give the chosen answers away, and images shared with the held-out pairs.

    loaded: the model that will train on them, which adds what does not fit it: its template, prompts and answers over
    `max_length` tokens, and images whose tokens and features differ in number (the tower runs once a shape).
    """
    found = Findings()
    model = _Model(loaded, max_length, found) if loaded is not None else None
    elsewhere = _images(held_out, found) if held_out is not None else frozenset()
    seen: dict[str, tuple[int, str]] = {}
    lengths: list[tuple[int, int]] = []
    for index in tqdm(range(len(pairs)), desc="examine", unit="pair"):
        try:
            pair, pictures = pairs.read(index)
        except BadRow:
            continue  # the dataset keeps it
        row = pairs.row(index)
        _alone(pair, row, found)
        _again(pair, row, seen, found)
        if _keys(pair) & elsewhere:
            found.add("error", "held-out images are trained on", "Take them out of one of the two.", row)
        measured = (len(pair.chosen.split()), len(pair.rejected.split())) if model is None else None
        if model is not None:
            measured = model.examine(pair, pictures, row)
        if measured:
            lengths.append(measured)
    found.add_bad_rows(pairs.bad)
    found.figures = {"data": pairs.summary(), **found.figures}
    _bias(lengths, "words" if model is None else "tokens", found)
    return found


class _Model:
    """What a pair needs to fit a model."""

    def __init__(self, loaded: Loaded, max_length: int, found: Findings) -> None:
        self.loaded, self.max_length, self.found = loaded, max_length, found
        self.encoder = Encoder(loaded, max_length=maxsize)
        self._shapes: dict[tuple[object, ...], int] = {}
        generation = loaded.model.generation_config
        stops = generation.eos_token_id if generation is not None else None
        stops = [stops] if isinstance(stops, int) else list(stops or [])
        name = loaded.processor.tokenizer.convert_ids_to_tokens(self.encoder.end)
        found.figures["answers end with"] = repr(name)
        if self.encoder.end not in stops:
            found.add(
                "warning",
                f"answers end with {name!r}, at which the model's generation does not stop",
                "Add its id to eos_token_id in generation_config.json, or answers will run on.",
            )

    def examine(self, pair: AnswerPair, pictures: list[Image.Image], row: int) -> tuple[int, int] | None:
        """Note what does not fit, and return the tokens of both answers."""
        own = len(pair.images)
        sides = [(pictures[:own], [pair.chosen, pair.rejected])]
        if pair.rejected_images is not None:
            sides = [(pictures[:own], [pair.chosen]), (pictures[own:], [pair.rejected])]
        try:
            encoded = [self.encoder.encode(pair.prompt, images, said, name="the pair") for images, said in sides]
        except UserError as error:
            advice = "Mend the row, or leave it out with --write-clean."
            self.found.add("error", "the model's processor cannot take the pair", advice, row, f"e.g. {error}")
            return None
        for one in encoded:
            self._fits(one, row)
            self._sees(one, row)
        chosen, rejected = (len(answer) for one in encoded for answer in one.answers)
        return chosen, rejected

    def _fits(self, encoded: Encoded, row: int) -> None:
        room = self.max_length - len(encoded.prompt)
        if room < 1:
            self.found.add(
                "error",
                f"the prompt alone fills {self.max_length} tokens",
                "Raise --max-length (and --data.max_length in training), or shorten the prompt.",
                row,
                f"e.g. {len(encoded.prompt)} tokens, {sum(encoded.image_tokens)} of them of images",
            )
        elif any(len(answer) > room for answer in encoded.answers):
            self.found.add(
                "warning",
                f"an answer loses its end and its end-of-turn token at {self.max_length} tokens",
                "Raise --max-length (and --data.max_length in training), or shorten the answers.",
                row,
            )

    @torch.no_grad()
    def _sees(self, encoded: Encoded, row: int) -> None:
        model = self.loaded.model
        for image, tokens in zip(encoded.images, encoded.image_tokens, strict=True):
            grid = image["image_grid_thw"].tolist() if "image_grid_thw" in image else None
            shape = (str({name: tuple(tensor.shape) for name, tensor in image.items()}), str(grid), tokens)
            if shape not in self._shapes:
                moved = {
                    name: t.to(model.device, model.dtype if t.is_floating_point() else None)
                    for name, t in image.items()
                }
                self._shapes[shape] = self.loaded.family.features(model, moved).shape[1]
            if self._shapes[shape] != tokens:
                self.found.add(
                    "error",
                    "an image has another number of tokens than of features",
                    "The processor does not belong to this model: take the one that was saved with it.",
                    row,
                    f"e.g. {tokens} tokens, {self._shapes[shape]} features",
                )


def _alone(pair: AnswerPair, row: int, found: Findings) -> None:
    if pair.chosen.strip() == pair.rejected.strip() and pair.rejected_images is None:
        found.add("error", "both answers are the same", "Such a pair teaches nothing: leave it out.", row)


def _again(pair: AnswerPair, row: int, seen: dict[str, tuple[int, str]], found: Findings) -> None:
    first, chosen = seen.setdefault(pair.id, (row, pair.chosen))
    if first == row and chosen == pair.chosen:
        return
    if chosen == pair.chosen:
        found.add(
            "warning", "the same pair stands in an earlier row", "Leave it out, unless it is meant to weigh more.", row
        )
    else:
        advice = "Leave out both, or give each a p_chosen."
        found.add("warning", "an earlier row prefers the other answer", advice, row, f"e.g. row {first}")


def _bias(lengths: Iterable[tuple[int, int]], unit: str, found: Findings) -> None:
    pairs = list(lengths)
    if not pairs:
        return
    chosen, rejected = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    gap = mean_interval([one - other for one, other in pairs])
    longer = sum(one < other for one, other in pairs) / len(pairs)
    found.figures["length"] = (
        f"chosen {chosen:.1f} {unit}, rejected {rejected:.1f}, difference {gap}; rejected longer in {longer:.0%}"
    )
    if gap.excludes(0) and abs(gap.value) > BIASED * chosen:
        side = "longer" if gap.value > 0 else "shorter"
        found.add(
            "warning",
            f"chosen answers are {side} by {abs(gap.value):.1f} {unit} on average",
            "A model can win by length alone: compare with a length-matched control (docs/rejected-answers.md).",
        )


def _keys(pair: AnswerPair) -> frozenset[str]:
    """Return the content ids of a pair's images, or what it asks where it has none."""
    images = (*pair.images, *(pair.rejected_images or ()))
    return frozenset(image.id for image in images) or frozenset({f"prompt {pair.prompt}"})


def _images(pairs: AnswerDataset[AnswerPair], found: Findings) -> frozenset[str]:
    """Return the keys of the held-out pairs."""
    keys: set[str] = set()
    for index in tqdm(range(len(pairs)), desc="held out", unit="pair"):
        try:
            keys |= _keys(pairs[index])
        except BadRow:
            continue
    found.add_unread(pairs.bad)
    found.figures["held out"] = pairs.summary()
    return frozenset(keys)

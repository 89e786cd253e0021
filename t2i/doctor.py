"""Pairs of images examined before they are trained on: what would stop a run, and what would spoil it."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

from palate.findings import Findings
from palate.readers import BadRow, PairDataset
from palate.records import Pair


def examine(pairs: PairDataset, model: str | None = None, *, held_out: PairDataset | None = None) -> Findings:
    """Return what is wrong with pairs, opened with bad rows skipped: unreadable images and rows, equal images, pairs
    that come again, and prompts or images shared with the held-out pairs.

    model: the pipeline that will train on them, which adds prompts that lose their end in a tokenizer and images
    smaller than it draws.
    """
    found = Findings()
    tokenizers, side = _of_model(model) if model else ({}, 0)
    elsewhere = _contents(held_out, found) if held_out is not None else frozenset()
    seen: dict[str, tuple[int, str]] = {}
    for index in tqdm(range(len(pairs)), desc="examine", unit="pair"):
        try:
            pair, *pictures = pairs.decoded(index)
        except BadRow:
            continue  # the dataset keeps it
        row = pairs.row(index)
        if pair.chosen.id == pair.rejected.id:
            found.add("error", "both images are the same", "Such a pair teaches nothing: leave it out.", row)
        first, chosen = seen.setdefault(pair.id, (row, pair.chosen.id))
        if first != row and chosen == pair.chosen.id:
            found.add(
                "warning",
                "the same pair stands in an earlier row",
                "Leave it out, unless it is meant to weigh more.",
                row,
            )
        elif first != row:
            advice = "Leave out both, or give each a p_chosen."
            found.add("warning", "an earlier row prefers the other image", advice, row, f"e.g. row {first}")
        if elsewhere & _keys(pair):
            advice = "Take them out of one of the two."
            found.add("error", "held-out prompts or images are trained on", advice, row)
        if len({picture.size for picture in pictures}) > 1:
            advice = "Both are cut to one square; where sizes tell the sides apart, check what made them."
            found.add("warning", "the two images differ in size", advice, row)
        if min(length for picture in pictures for length in picture.size) < side:
            advice = "They are scaled up: take larger ones, or train with a smaller --data.image.resolution."
            found.add("warning", f"an image is smaller than the model's {side} pixels", advice, row)
        for caption in {pair.prompt, pair.prompt_chosen or pair.prompt, pair.prompt_rejected or pair.prompt}:
            _captions(caption, row, tokenizers, found)
    found.add_bad_rows(pairs.bad)
    found.figures = {"data": pairs.summary(), **found.figures}
    return found


def _captions(caption: str, row: int, tokenizers: dict[str, Any], found: Findings) -> None:
    for name, tokenizer in tokenizers.items():
        count = len(tokenizer(caption)["input_ids"])
        if count > tokenizer.model_max_length:
            what = f"the prompt loses its end: {name} takes {tokenizer.model_max_length} tokens"
            found.add("warning", what, "Shorten it, or put what matters first.", row, f"e.g. {count} tokens")


def _of_model(source: str) -> tuple[dict[str, Any], int]:
    """Return a pipeline's tokenizers by name, and the side of the images that it draws, in pixels."""
    from t2i.families import load_family

    family = load_family(source)
    names = ("tokenizer", "tokenizer_2", "tokenizer_3")
    found = {name: getattr(family.pipeline, name, None) for name in names}
    return {name: tokenizer for name, tokenizer in found.items() if tokenizer is not None}, family.resolution


def _keys(pair: Pair) -> frozenset[str]:
    return frozenset({f"prompt {pair.prompt}", pair.chosen.id, pair.rejected.id})


def _contents(pairs: PairDataset, found: Findings) -> frozenset[str]:
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

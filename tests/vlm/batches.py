"""A small batch that has every difficulty: several images, none, a repeated one, several turns, answers of other lengths."""

from __future__ import annotations

from palate.conversations import IMAGE, Message
from tests.tiny_vlm import picture, question
from vlm.batch import Batch, Encoded
from vlm.encoding import Encoder
from vlm.loading import Loaded

TURNS = [
    Message("system", ("be brief.",)),
    Message("user", (IMAGE, "what is in the image?")),
    Message("assistant", ("a red circle",)),
    Message("user", ("how many cats are there?",)),
]


def mixed_items(encoder: Encoder) -> list[Encoded]:
    """Return four prompts with two answers each; the second image of the first is that of the others."""
    return [
        encoder.encode(question(images=2), [picture(0), picture(1, (24, 60))], ["a red cat", "two dogs and one cat"]),
        encoder.encode(question(images=0), [], ["a red cat on the table", "two dogs"]),
        encoder.encode(question("how many cats?"), [picture(1, (24, 60))], ["two", "two dogs and a blue cat"]),
        encoder.encode(TURNS, [picture(1, (24, 60))], ["there are two cats", "one"]),
    ]


def mixed_batch(loaded: Loaded) -> Batch:
    """Return those prompts as one batch."""
    encoder = Encoder(loaded, max_length=400)
    return encoder.collate(mixed_items(encoder))

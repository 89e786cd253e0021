"""Which items are kept from training to measure on: whole prompts, by their hash."""

from __future__ import annotations

from collections.abc import Sequence

from palate.randomness import uniform


def hold_out(prompts: Sequence[str], share: float, limit: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the items to train on and of those to hold out, each in order.

    Prompts are held out whole, in the order of their hashes, until a `share` of them or `limit` items are reached: the
    same for every seed, so that runs can be compared. At least one prompt stays to train on.
    """
    by_prompt: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(index)
    places = {prompt: uniform(0, prompt, 0, "held out") for prompt in by_prompt}
    held: list[int] = []
    for prompt in sorted(by_prompt, key=places.__getitem__):
        more = len(held) + len(by_prompt[prompt])
        if places[prompt] >= share or more > limit or more == len(prompts):
            break
        held += by_prompt[prompt]
    apart = set(held)
    return [index for index in range(len(prompts)) if index not in apart], sorted(held)

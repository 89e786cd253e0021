"""BPO's preference data (2403.08730): prompt, image (a name), completions [{score, response, type}].

Each two completions of different score are a pair, the better one chosen, with the difference as score_gap. `type`
says what made a response: gt (annotated), llm-hal (errors injected by a text model), mllm-hal (sampled with a weakened
image). Responses of more than 350 words are left out, as in the released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from palate.conversations import answer_id
from palate.readers.drafts import Draft, Row, pair_reader, provenance, text
from palate.readers.reader import Unreadable
from palate.readers.turns import turns

WORDS = 350


def unfold(row: Row) -> list[Row]:
    """Return one row for each two completions that differ in score, the better first."""
    completions = row["completions"]
    if not isinstance(completions, list):
        raise Unreadable("completions is not a list", "It is a list of {score, response, type}.")
    short = [one for one in map(_checked, completions) if len(one["response"].split()) <= WORDS]
    pairs = [sorted(two, key=lambda one: -one["score"]) for two in combinations(short, 2)]
    rest = {name: value for name, value in row.items() if name != "completions"}
    return [{**rest, "completions": (a, b)} for a, b in pairs if a["score"] != b["score"]]


def draft(row: Row) -> Draft:
    better, worse = row["completions"]
    made = {answer_id(one["response"]): {"method": one["type"]} for one in (worse, better) if one.get("type")}
    fields = {
        "chosen": better["response"],
        "rejected": worse["response"],
        "score_gap": better["score"] - worse["score"],
        "source": "bpo",
        "meta": {**provenance(row, ("id",)), "score_unit": "bpo", **({"made": made} if made else {})},
    }
    return Draft(turns("prompt", row["prompt"]), fields)


def _checked(completion: Any) -> dict[str, Any]:
    if not isinstance(completion, Mapping):
        raise Unreadable("completions holds something that is no completion", "Each is {score, response, type}.")
    score = completion.get("score")
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not abs(score) < 1e30:
        raise Unreadable("a completion has no score", "Give every completion a number, higher for the better.")
    kind = completion.get("type")
    response = text("response", completion.get("response"))
    return {"score": score, "response": response, "type": kind if isinstance(kind, str) else ""}


READER = pair_reader(
    "bpo",
    draft,
    prompt="prompt",
    needs=("prompt", "completions"),
    cheap=("id",),
    unfold=unfold,
    nothing="without two scores",
    always=frozenset({"score_gap"}),
)

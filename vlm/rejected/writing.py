"""Rejected answers written by a language model that sees no image: true answers with errors put in (POVID, BPO).

The prompts are palate's own words for what the papers describe. Whatever answers text will do: a local model, or an
endpoint with a stronger one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from palate.checking import digest
from palate.conversations import Exchange, Message
from palate.errors import UserError, unknown
from vlm.answering import Answerer, Ask
from vlm.rejected.building import Made

Task = Literal["description", "qa"]
Mode = Literal["auto", "description", "qa"]
MODES: tuple[Mode, ...] = get_args(Mode)

_SHAPE = (
    "Keep the style, and about the length: at most a tenth more or fewer words. Do not hint that anything is invented. "
    "Put the new answer between <answer> and </answer>, and write nothing else."
)
_GIVEN = "{shape}\n\nQuestion: {question}\n\nTrue answer: {answer}"
PROMPTS: dict[tuple[str, Task], str] = {
    ("povid-inject", "description"): (
        "Below is a true description of a picture that you cannot see. Write a false version of it that sounds just as "
        "likely. Name one or two objects that are often seen together with the ones there, but that the text does not "
        "mention; get the place of one object relative to another wrong; and give one object a wrong colour, size, number "
        f"or material. Leave the other sentences as they are. {_GIVEN}"
    ),
    ("povid-inject", "qa"): (
        "Below is a question about a picture that you cannot see, and its true answer. Write a wrong answer that sounds "
        "just as likely: let its reasoning start from something that is not in the picture but often goes with what is, "
        f"and follow it to a wrong end. {_GIVEN}"
    ),
    ("bpo-inject", "description"): (
        "Below is a true description of a picture. Change some of its details so that they are believable and wrong: swap "
        "objects for others that would fit the place, and change their features, such as colours, counts, actions and "
        f"positions. Change something in most sentences. {_GIVEN}"
    ),
    ("bpo-inject", "qa"): (
        "Below is a question about a picture, and its true answer. Think of another picture that is like this one and "
        "differs in what the question is about, and give the answer that would be true of that one. It must contradict "
        f"the answer below. {_GIVEN}"
    ),
}
"""(method, kind of question) -> what a writer is told."""

_DESCRIBE = re.compile(r"\b(describe|description|caption|summari[sz]e|what (do|can) you see)\b", re.IGNORECASE)
_REFUSALS = (
    "i'm sorry",
    "i am sorry",
    "sorry,",
    "i cannot",
    "i can't",
    "i can not",
    "i'm unable",
    "i am unable",
    "as an ai",
)
_TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)


class Written:
    """Rejected answers from a writer. mode: which prompt; "auto" takes the one for descriptions where the question asks
    for one."""

    def __init__(self, method: Literal["povid-inject", "bpo-inject"], writer: Answerer, *, mode: Mode = "auto") -> None:
        if mode not in MODES:
            raise UserError(unknown("mode", str(mode), MODES))
        self.method: str = method
        self.writer, self.mode = writer, mode

    @property
    def settings(self) -> Mapping[str, Any]:
        words = [text for (method, _), text in PROMPTS.items() if method == self.method]
        return {**self.writer.settings, "mode": self.mode, "prompts": digest([*words, _SHAPE])}

    def build(self, exchanges: Sequence[Exchange]) -> Iterator[tuple[int, Made]]:
        """Yield what the writer made of each answer; a reply that is cut or refuses is unfit."""
        tasks = [self._task(exchange) for exchange in exchanges]
        asks = [
            Ask(digest([exchange.prompt[-1].text, exchange.answer]), (Message.user(self._prompt(exchange, task)),))
            for exchange, task in zip(exchanges, tasks, strict=True)
        ]
        for number, answer in self.writer.answer(asks):
            text = read_reply(answer.text)
            unfit = ""
            if answer.finish == "length":
                unfit = "the writer's reply was cut; allow more new tokens"
            elif text.lower().replace("’", "'").startswith(_REFUSALS):
                unfit = "the writer refused"
            yield number, Made(text, {"task": tasks[number]}, answer.failure, unfit)

    def _task(self, exchange: Exchange) -> Task:
        if self.mode != "auto":
            return self.mode
        return "description" if _DESCRIBE.search(exchange.prompt[-1].text) else "qa"

    def _prompt(self, exchange: Exchange, task: Task) -> str:
        template = PROMPTS[self.method, task]
        fields = {"shape": _SHAPE, "question": exchange.prompt[-1].text, "answer": exchange.answer}
        return re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], template)


def read_reply(text: str) -> str:
    """Return the answer in a writer's reply: what stands between the tags, or all of it without quotes around it."""
    tagged = _TAGGED.search(text)
    said = (tagged[1] if tagged else text).strip()
    if len(said) > 1 and said[0] in "\"'“" and said[-1] in "\"'”":
        said = said[1:-1].strip()
    return said

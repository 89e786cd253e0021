"""Battles on prompts that voters type: a queue that says where one stands, and both sides released together.

One thread draws. The two sides are drawn in random order from random seeds, and a finished battle is released at the next
multiple of `release_seconds` after it was begun, so that neither order nor time tells who made what. The queue lives in
this process; what is finished is in the database.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from apps.arena.errors import Refused
from apps.arena.live.makers import Maker
from apps.arena.matchmaking import choose_pair
from apps.arena.packs import measures
from apps.arena.packs.importing import NewItem, NewOutput, add_items, model_id, text_id
from apps.arena.packs.media import Size
from apps.arena.store.catalog import Output, Prompt, changed
from apps.arena.store.schema import outputs, prompts, voters
from apps.arena.voting.battles import (
    Drawn,
    Issued,
    Request,
    admit,
    check_pace,
    deal,
    history,
    live_limits,
    names_itself,
)
from apps.arena.voting.limits import take
from apps.arena.voting.visitors import Visitor
from palate.decoding import to_rgb
from palate.errors import UserError
from palate.records import Media

if TYPE_CHECKING:
    from apps.arena.service import Answer, Arena

CATEGORY = "live"
KEPT_MS = 30 * 60 * 1000
"""For how long a finished battle waits to be fetched."""


@dataclass
class Waiting:
    """A battle that is asked for: waiting, being drawn, or finished with `issued` or `error`."""

    visitor: Visitor
    request: Request
    kind: str
    prompt: str
    question: tuple[str, Size] | None
    ready: int | None = None
    issued: Issued | None = None
    error: Refused | None = None


class LiveQueue:
    """Draws battles one after the other for an arena."""

    def __init__(self, arena: Arena, makers: Sequence[Maker]) -> None:
        self.makers = {maker.name: maker for maker in makers}
        self.kinds = sorted({maker.kind for maker in makers})
        self._arena, self._stop = arena, False
        self._jobs: OrderedDict[str, Waiting] = OrderedDict()
        self._changed = threading.Condition()
        now = arena.clock()

        def note(connection: Connection) -> None:
            for maker in makers:
                model_id(connection, maker.name, maker.kind, now)
            changed(connection)

        arena.writer.run(note)
        arena.board.refresh()
        self._thread = threading.Thread(target=self._work, name="arena-live", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish the battle that is being drawn, and stop."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        self._thread.join()

    async def ask(self, visitor: Visitor, prompt: str, image: str | None) -> Answer:
        """Put a battle in the queue and return {ticket, position}. Refused beyond a limit, or where the queue is full."""
        arena, limits = self._arena, self._arena.settings.limits
        prompt = " ".join(prompt.split()) if image is None else prompt.strip()
        if not prompt or len(prompt) > limits.prompt_characters:
            raise Refused(
                "invalid", f"A prompt has 1 to {limits.prompt_characters} characters; this has {len(prompt)}."
            )
        kind = "text" if image is not None else "image"
        if kind not in self.kinds:
            raise Refused("invalid", f"No model here answers {'questions about pictures' if image else 'prompts'}.")
        question = None if image is None else arena.uploads.take(image, visitor)

        request = await arena.request(visitor)

        def count(connection: Connection) -> None:
            admit(connection, request, arena.settings)
            check_pace(history(connection, visitor.voter), request.now, arena.settings)
            take(connection, live_limits(request, text_id(prompt), arena.settings), request.now)

        with self._changed:
            if sum(job.ready is None for job in self._jobs.values()) >= arena.settings.live.queue:
                raise Refused("busy", "The queue is full. Vote on what is there, and try again in a few minutes.")
        await arena.write(count)
        number = secrets.token_hex(8)
        with self._changed:
            self._jobs[number] = Waiting(visitor, request, kind, prompt, question)
            self._changed.notify()
            position = self._position(number)
        return {"ticket": arena.tokens.sign("ticket", number, visitor.voter), "position": position}

    async def look(self, visitor: Visitor, ticket: str) -> Answer:
        """Return {ticket, position} while a battle waits (0: being drawn), then the battle, once."""
        number, voter = self._arena.tokens.read("ticket", ticket, 2)
        if voter != visitor.voter:
            raise Refused("forged", "This ticket belongs to somebody else.")
        with self._changed:
            job = self._jobs.get(number)
            if job is None:
                raise Refused("missing", "The queue does not know this ticket any more. Ask again.")
            if job.ready is None or self._arena.clock() < job.ready:
                return {"ticket": ticket, "position": self._position(number)}
            del self._jobs[number]
        if job.error is not None or job.issued is None:
            raise job.error or Refused("busy", "This battle was not drawn.")
        return await self._arena.describe(job.issued, visitor)

    def forget(self, voter: str) -> None:
        """Drop what a voter asked for. What is being drawn finds the voter gone."""
        with self._changed:
            for number in [n for n, job in self._jobs.items() if job.visitor.voter == voter]:
                del self._jobs[number]

    def _position(self, number: str) -> int:
        waiting = [n for n, job in self._jobs.items() if job.ready is None]
        return waiting.index(number) if number in waiting else 0

    def _work(self) -> None:
        while True:
            with self._changed:
                self._forget_old()
                job = next((job for job in self._jobs.values() if job.ready is None), None)
                if self._stop:
                    return
                if job is None:
                    self._changed.wait(60)
                    continue
            begun = self._arena.clock()
            try:
                job.issued = self._draw(job)
            except UserError as error:
                job.error = error if isinstance(error, Refused) else Refused("busy", str(error))
            except Exception:
                logging.getLogger("palate.arena").exception("A live battle failed.")
                job.error = Refused("busy", "A model failed on this prompt. Try another one.")
            step = self._arena.settings.live.release_seconds * 1000
            took = self._arena.clock() - begun
            with self._changed:
                job.ready = begun + -(-max(took, 1) // step) * step

    def _forget_old(self) -> None:
        now = self._arena.clock()
        for number in [n for n, job in self._jobs.items() if now - job.request.now > KEPT_MS]:
            del self._jobs[number]

    def _draw(self, job: Waiting) -> Issued:
        arena, view = self._arena, self._arena.board.view
        able = {maker.name for maker in self.makers.values() if maker.kind == job.kind}
        places = [k for k, name in enumerate(view.catalog.names) if name in able]
        choice = choose_pair(
            view.standing,
            secrets.token_hex(8),
            seed=arena.random.getrandbits(32),
            allowed=view.catalog.mask({(i, j) for i in places for j in places if i < j}),
            floor=arena.settings.matching.floor,
            newcomer_share=arena.settings.matching.newcomer_share,
            newcomer_battles=arena.settings.matching.newcomer_battles,
        )
        question = None if job.question is None else Media.image(arena.media.path(job.question[0]))
        made = []
        for name in sorted(choice.pair, key=lambda _: arena.random.random()):
            seed = arena.random.getrandbits(31)
            made.append(self._stored(name, seed, self.makers[name].make(job.prompt, question, seed)))
        return arena.writer.run(lambda connection: self._record(connection, job, made, choice.probability, choice.rule))

    def _stored(self, name: str, seed: int, output: Any) -> NewOutput:
        if isinstance(output, str):
            return NewOutput(name, seed, None, None, output, measures.of_text(output))
        picture = to_rgb(output)
        media, size = self._arena.media.add(picture)
        return NewOutput(name, seed, media, size, None, measures.of_image(picture))

    def _record(
        self, connection: Connection, job: Waiting, made: list[NewOutput], probability: float, rule: str
    ) -> Issued:
        """Store prompt, outputs and battle in one transaction."""
        arena, now, voter = self._arena, self._arena.clock(), job.visitor.voter
        asker = connection.execute(select(voters.c.owner).where(voters.c.id == voter)).one_or_none()
        if asker is None:
            raise Refused("missing", "This voter's data were deleted meanwhile.")
        item = NewItem(job.prompt, job.kind, CATEGORY, job.question, tuple(made), author=voter)
        add_items(connection, [item], now, announce=False)
        row = connection.execute(select(prompts).where(prompts.c.digest == item.digest)).one()
        sides = []
        for new in made:
            model = model_id(connection, new.model, job.kind, now)
            here = (outputs.c.prompt == row.id) & (outputs.c.model == model) & (outputs.c.digest == new.digest)
            found = connection.execute(select(outputs).where(here)).one()
            sides.append(Output(found.id, row.id, found.model, found.media, new.size, found.text))
        request = replace(job.request, now=now)
        known = names_itself(arena.catalog.naming, *sides) or asker.owner
        drawn = Drawn("live", sides[0], sides[1], probability, rule, known)
        prompt = Prompt(row.id, job.kind, row.text, CATEGORY, row.question)
        return deal(connection, request, drawn, arena.settings, arena.random, prompt)

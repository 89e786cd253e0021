"""The arena as an object: what the API and the page call. A method that writes is a coroutine; when it returns, the change
is on disk.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

from sqlalchemy import Connection, select

from apps.arena.board import BoardKeeper
from apps.arena.errors import Refused
from apps.arena.live.makers import Maker
from apps.arena.live.queue import LiveQueue
from apps.arena.live.uploads import Uploads
from apps.arena.packs.media import MediaFolder, Size, common_size, equal_length, pad
from apps.arena.settings import ArenaSettings
from apps.arena.store.catalog import Catalog, Output
from apps.arena.store.database import connect
from apps.arena.store.events import iso
from apps.arena.store.schema import battles as battle_table
from apps.arena.store.schema import media, outputs, prompts
from apps.arena.store.writer import Job, Result, Writer
from apps.arena.voting import ballots, battles, consent, voter_data
from apps.arena.voting.limits import DAY, HOUR, Limit, take
from apps.arena.voting.reasons import REASONS
from apps.arena.voting.tokens import SIDES, Tokens, load_secret
from apps.arena.voting.visitors import Visitor, forget_addresses, hash_network, salt_of_today
from apps.arena.web.markdown import to_html

Answer = dict[str, Any]
"""What the API gives back as JSON."""


def milliseconds() -> int:
    """Return the time, milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Arena:
    """One worker's view of an arena: database, pictures, signing key, catalogue and board."""

    def __init__(
        self,
        folder: Path,
        settings: ArenaSettings | None = None,
        *,
        url: str | None = None,
        clock: Callable[[], int] = milliseconds,
        random: Random | None = None,
    ) -> None:
        self.folder, self.settings, self.clock = folder, settings or ArenaSettings(), clock
        self.random = random or SystemRandom()
        self.engine = connect(folder, url)
        self.tokens = Tokens(load_secret(folder))
        self.media = MediaFolder(folder / "media")
        self.writer = Writer(self.engine)
        self.board = BoardKeeper(self.engine, self.settings, clock)
        self.uploads = Uploads(folder / "uploads", self.media, self.tokens, self.settings.limits.upload_pixels)
        self.live: LiveQueue | None = None
        self._salt = (-1, "")

    def start_live(self, makers: Sequence[Maker]) -> None:
        """Let these models answer prompts that voters type."""
        self.live = LiveQueue(self, makers)

    def close(self) -> None:
        """Finish what was begun."""
        if self.live is not None:
            self.live.close()
        self.board.close()
        self.writer.close()
        self.engine.dispose()

    @property
    def catalog(self) -> Catalog:
        """What can be shown now."""
        return self.board.view.catalog

    async def new_battle(self, visitor: Visitor, category: str | None = None) -> Answer:
        """Return a battle for the voter, as `POST /api/battle` describes it."""
        request, view = await self.request(visitor, category), self.board.view

        def job(connection: Connection) -> battles.Issued:
            return battles.issue(
                connection, request, view.catalog, view.standing, view.full, self.settings, self.random
            )

        return await self.describe(await self.write(job), visitor)

    async def describe(self, issued: battles.Issued, visitor: Visitor) -> Answer:
        """Return what the page may know of a battle before the vote; its pictures are ready when this returns."""
        prompt, sides = issued.prompt, {"a": issued.a, "b": issued.b}
        if issued.a.size and issued.b.size:
            size = common_size(issued.a.size, issued.b.size)
            if issued.a.size != issued.b.size:
                await asyncio.to_thread(self._prepare, sides.values(), size)
            shown = {s: {"url": self.url(issued.id, s), "width": size[0], "height": size[1]} for s in sides}
        else:
            shown = {s: {"markdown": output.text, "html": to_html(output.text or "")} for s, output in sides.items()}
        return {
            "token": self.tokens.battle(issued.id, visitor.voter, issued.expires),
            "kind": prompt.kind,
            "prompt": prompt.text,
            "category": prompt.category,
            "question_image": {"url": self.url(issued.id, "q")} if prompt.question else None,
            **shown,
            "reasons": [{"key": key, "label": label} for key, label in REASONS[prompt.kind].items()],
            "expires": iso(issued.expires),
        }

    async def ask_live(self, visitor: Visitor, prompt: str, image: str | None) -> Answer:
        """Queue a battle on the voter's own prompt, or question about an uploaded picture; return {ticket, position}."""
        return await self._live().ask(visitor, prompt, image)

    async def look_live(self, visitor: Visitor, ticket: str) -> Answer:
        """Return {ticket, position} while the battle waits, then the battle."""
        return await self._live().look(visitor, ticket)

    async def upload(self, visitor: Visitor, data: bytes) -> Answer:
        """Take a picture for a question; return {image}, a token for it."""
        self._live()
        request = await self.request(visitor)
        most = self.settings.limits.network_live_per_hour
        limit = Limit(f"uploads:{request.network}", most, HOUR, "uploads from your network")
        await self.write(lambda connection: take(connection, [limit], request.now))
        return {"image": await asyncio.to_thread(self.uploads.add, data, visitor)}

    async def vote(self, visitor: Visitor, token: str, outcome: str, reasons: Sequence[str] = ()) -> Answer:
        """Record a vote and return its receipt."""
        battle, now = self.read(visitor, token), self.clock()
        cast = await self.write(lambda c: ballots.vote(c, battle, visitor.voter, outcome, reasons, now))
        return {"receipt": cast.receipt, "outcome": cast.outcome, "reveal_after": self.settings.reveal_seconds}

    async def undo(self, visitor: Visitor, token: str) -> Answer:
        """Take a vote back."""
        battle, now, limit = self.read(visitor, token), self.clock(), self.settings.reveal_seconds * 1000
        await self.write(lambda c: ballots.undo(c, battle, visitor.voter, now, limit))
        return {"ok": True}

    async def skip(self, visitor: Visitor, token: str) -> Answer:
        """Log that the voter passed a battle over."""
        battle, now = self.read(visitor, token), self.clock()
        await self.write(lambda c: ballots.skip(c, battle, visitor.voter, now))
        return {"ok": True}

    async def reveal(self, visitor: Visitor, token: str) -> Answer:
        """Return who made what, once there is a vote."""
        battle, now = self.read(visitor, token), self.clock()
        return asdict(await self.write(lambda c: ballots.reveal(c, battle, visitor.voter, now)))

    async def forget(self, visitor: Visitor) -> Answer:
        """Delete all that is known of the voter."""
        now = self.clock()
        if self.live is not None:
            self.live.forget(visitor.voter)
        deleted, pictures = await self.write(lambda c: voter_data.erase(c, visitor.voter, now))
        for name in pictures:
            self.media.remove(name)
        return deleted

    async def agree(self, visitor: Visitor, version: str) -> Answer:
        """Record that the voter agrees to the text of this version."""
        now = self.clock()
        await self.write(lambda c: consent.agree(c, visitor.voter, version, now))
        return {"ok": True}

    def me(self, visitor: Visitor) -> Answer:
        """Return the voter's own counts, and their own board once they have voted enough."""
        with self.engine.connect() as connection:
            return voter_data.summary(connection, visitor.voter, self.settings.personal_board_votes)

    def consent(self) -> Answer:
        """Return the text that voters must agree to, with its version; both null where there is none."""
        with self.engine.connect() as connection:
            text = consent.current(connection)
        return {"text": text and text.text, "version": text and text.version}

    def picture(self, name: str) -> bytes:
        """Return the PNG behind an opaque name, as long as that of the other side."""
        battle, side = self.tokens.read("media", name, 2)
        if side not in SIDES:
            raise Refused("missing", "There is no such picture.")
        found = self._pictures(battle)
        if self.clock() >= found["expires"]:
            raise Refused("expired", "This battle is over.")
        if side == "q":
            if not found["question"]:
                raise Refused("missing", "There is no such picture.")
            return self.media.read(*found["question"])
        a, b = found["a"], found["b"]
        if not a or not b:
            raise Refused("missing", "There is no such picture.")
        size = common_size(a[1], b[1])
        mine, other = (a, b) if side == "a" else (b, a)
        png = self.media.read(mine[0], size)
        return pad(png, equal_length(len(png), self.media.prepare(other[0], size).stat().st_size))

    async def write(self, job: Job[Result]) -> Result:
        """Run a job of the writer; when this returns, it is on disk."""
        return await asyncio.wrap_future(self.writer.submit(job))

    async def request(self, visitor: Visitor, category: str | None = None) -> battles.Request:
        """Return what the choice of a battle needs to know of who asks."""
        now, wanted, network = self.clock(), self.board.view.consent, ""
        if visitor.network:
            if self._salt[0] != now // DAY:
                self._salt = (now // DAY, await self.write(lambda connection: salt_of_today(connection, now)))
            network = hash_network(self.tokens, visitor.network, self._salt[1])
        return battles.Request(
            visitor, network, secrets.token_hex(16), now, category, wanted.version if wanted else None
        )

    def read(self, visitor: Visitor, token: str) -> str:
        """Return the battle of a token that this voter holds."""
        return self.tokens.read_battle(token, visitor.voter, self.clock())

    def url(self, battle: str, side: str) -> str:
        """Return where a picture of a battle is."""
        return f"/media/{self.tokens.sign('media', battle, side)}"

    def housekeep(self) -> None:
        """Erase what is over: hashes of old addresses, counters, uploads that were never used."""
        now, days = self.clock(), self.settings.address_days
        self.writer.run(lambda connection: forget_addresses(connection, now, days))
        self.uploads.clean()

    def _live(self) -> LiveQueue:
        if self.live is None:
            raise Refused("invalid", "This arena draws no prompts of your own.")
        return self.live

    def _prepare(self, sides: Iterable[Output], size: Size) -> None:
        for output in sides:
            self.media.prepare(output.media or "", size)

    def _pictures(self, battle: str) -> dict[str, Any]:
        a, b, q = (media.alias(name) for name in ("ma", "mb", "mq"))
        oa, ob = outputs.alias("oa"), outputs.alias("ob")
        columns = [table.c[name] for table in (a, b, q) for name in ("id", "width", "height")]
        query = (
            select(battle_table.c.expires, *columns)
            .join(oa, oa.c.id == battle_table.c.output_a)
            .join(ob, ob.c.id == battle_table.c.output_b)
            .join(prompts, prompts.c.id == battle_table.c.prompt)
            .outerjoin(a, a.c.id == oa.c.media)
            .outerjoin(b, b.c.id == ob.c.media)
            .outerjoin(q, q.c.id == prompts.c.question)
            .where(battle_table.c.id == battle)
        )
        with self.engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise Refused("missing", "This battle is no longer here.")
        found: dict[str, Any] = {"expires": row[0]}
        for place, name in enumerate(("a", "b", "question")):
            ident, width, height = row[1 + 3 * place : 4 + 3 * place]
            found[name] = (ident, (width, height)) if ident else None
        return found

"""Which battle a voter gets next: checks of limits, then a pair of models, a prompt, outputs and sides."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select

from apps.arena.errors import Refused
from apps.arena.matchmaking import choose_pair
from apps.arena.ratings.tally import Standing
from apps.arena.settings import ArenaSettings
from apps.arena.store.catalog import Catalog, Output, Prompt
from apps.arena.store.schema import battles, voters, votes
from apps.arena.store.sql import insert_new
from apps.arena.voting.limits import DAY, HOUR, MINUTE, Limit, take, too_many
from apps.arena.voting.visitors import Visitor

HISTORY = 2000
"""Battles of one voter that are looked at, the latest."""


@dataclass(frozen=True)
class Request:
    """All that the choice of a battle depends on besides the database."""

    visitor: Visitor
    network: str
    """Today's hash of the visitor's network."""
    battle: str
    """Random id of the battle to come."""
    now: int
    category: str | None = None
    consent: str | None = None
    """Digest of the text to which a voter must have agreed."""


@dataclass(frozen=True)
class Drawn:
    """A chosen battle, before sides are dealt."""

    kind: str
    first: Output
    second: Output
    probability: float | None = None
    rule: str = ""
    known: bool = False
    better: Output | None = None
    repeats: str | None = None


@dataclass(frozen=True)
class Issued:
    """A battle that is in the database."""

    id: str
    kind: str
    prompt: Prompt
    a: Output
    b: Output
    expires: int


def issue(
    connection: Connection,
    request: Request,
    catalog: Catalog,
    standing: Standing,
    full: frozenset[str],
    settings: ArenaSettings,
    random: Random,
) -> Issued:
    """Choose and record a battle. Refused beyond a limit, without consent, or where nothing is left to judge.

    standing: what matchmaking knows. full: names of models that have reached their daily cap.
    """
    owner = admit(connection, request, settings)
    past = history(connection, request.visitor.voter)
    check_pace(past, request.now, settings)
    drawn = _check_battle(past, catalog, settings, random) or _plain(
        past, request, catalog, standing, full, settings, random
    )
    drawn = replace(drawn, known=drawn.known or owner)
    return deal(connection, request, drawn, settings, random, catalog.prompts[drawn.first.prompt])


def admit(connection: Connection, request: Request, settings: ArenaSettings) -> bool:
    """Make the voter known, and count the request against the network; return whether the voter is the owner.

    Refused beyond a limit or without consent.
    """
    limits, voter, network = settings.limits, request.visitor.voter, request.network
    counted = [
        Limit(f"battles:{network}", limits.network_battles_per_minute, MINUTE, "battles asked for from your network")
    ]
    known = connection.execute(_VOTER, {"voter": voter}).one_or_none()
    if known is None:
        insert_new(connection, voters, {"id": voter, "created": request.now, "consent": None, "owner": False})
        known = connection.execute(_VOTER, {"voter": voter}).one()
        counted.append(Limit(f"voters:{network}", limits.network_voters_per_day, DAY, "new voters from your network"))
    if network:
        take(connection, counted, request.now)
    if request.consent is not None and known.consent != request.consent:
        raise Refused("consent", "Please read and accept the terms first.")
    return known.owner


def history(connection: Connection, voter: str) -> Sequence[Any]:
    """Return the voter's battles, the latest first, with `outcome`, `voted` and `revealed` of their votes."""
    return connection.execute(_HISTORY, {"voter": voter}).all()


def deal(
    connection: Connection,
    request: Request,
    drawn: Drawn,
    settings: ArenaSettings,
    random: Random,
    prompt: Prompt,
) -> Issued:
    """Deal the sides by a fair coin, record the battle and return it."""
    a, b = (drawn.first, drawn.second) if random.random() < 0.5 else (drawn.second, drawn.first)
    expires = request.now + settings.battle_minutes * MINUTE
    row = {
        "id": request.battle,
        "voter": request.visitor.voter,
        "network": request.network or None,
        "created": request.now,
        "expires": expires,
        "kind": drawn.kind,
        "category": prompt.category,
        "prompt": prompt.id,
        "output_a": a.id,
        "output_b": b.id,
        "model_a": a.model,
        "model_b": b.model,
        "probability": drawn.probability,
        "rule": drawn.rule,
        "known": drawn.known,
        "better": None if drawn.better is None else "a" if drawn.better is a else "b",
        "repeats": drawn.repeats,
        "skipped": None,
    }
    connection.execute(_INSERT, row)
    return Issued(request.battle, drawn.kind, prompt, a, b, expires)


def live_limits(request: Request, prompt: str, settings: ArenaSettings) -> list[Limit]:
    """Return what a live battle counts against. prompt: hash of the typed prompt."""
    limits = settings.limits
    return [
        Limit(f"live:{request.visitor.voter}", limits.live_per_hour, HOUR, "live battles"),
        Limit(f"live-prompt:{prompt}", limits.prompt_live_per_hour, HOUR, "live battles on this prompt"),
        Limit(f"live-network:{request.network}", limits.network_live_per_hour, HOUR, "live battles from your network"),
    ]


def check_pace(past: Sequence[Any], now: int, settings: ArenaSettings) -> None:
    limits = settings.limits
    minute = Limit("", limits.battles_per_minute, MINUTE, "battles asked for")
    if sum(row.created >= now - now % MINUTE for row in past) >= minute.most:
        raise too_many(minute, now)
    day = Limit("", limits.votes_per_day, DAY, "votes in a day")
    today = sum(_counts_today(row, now) for row in past)
    if today >= day.most:
        raise too_many(day, now)


def _counts_today(row: Any, now: int) -> bool:
    """Whether the battle has a vote of today, or can still get one."""
    today = now - now % DAY
    return row.voted >= today if row.voted is not None else row.skipped is None and row.expires > now


def _check_battle(past: Sequence[Any], catalog: Catalog, settings: ArenaSettings, random: Random) -> Drawn | None:
    """Now and then, return a battle that measures the voter: one with a known answer, or one they judged before."""
    checks, voted = settings.checks, [row for row in past if row.outcome is not None]
    if len(voted) < checks.after:
        return None
    draw = random.random()
    if draw < checks.gold_share:
        seen = {row.output_a for row in past if row.kind == "gold"} | {
            row.output_b for row in past if row.kind == "gold"
        }
        golds = [(whole, bad) for whole, bad in catalog.golds if bad.id not in seen]
        if golds:
            whole, bad = random.choice(golds)
            return Drawn("gold", whole, bad, better=whole)
    elif draw < checks.gold_share + checks.repeat_share:
        again = {row.repeats for row in past}
        known = [row for row in voted[checks.after :] if row.kind == "plain" and row.id not in again]
        known = [row for row in known if row.output_a in catalog.outputs and row.output_b in catalog.outputs]
        if known:
            row = random.choice(known)
            a, b = catalog.outputs[row.output_a], catalog.outputs[row.output_b]
            return Drawn("repeat", a, b, known=row.revealed is not None, repeats=row.id)
    return None


def _plain(
    past: Sequence[Any],
    request: Request,
    catalog: Catalog,
    standing: Standing,
    full: frozenset[str],
    settings: ArenaSettings,
    random: Random,
) -> Drawn:
    if request.category and request.category not in catalog.categories:
        raise Refused("invalid", f"There is no category '{request.category}'.", categories=list(catalog.categories))
    limits, shared = settings.limits, catalog.shared(request.category)
    asked = Counter(row.prompt for row in past)
    done = {prompt for prompt, times in asked.items() if times >= limits.battles_per_prompt}
    met = Counter((row.prompt, *sorted((row.model_a, row.model_b))) for row in past)
    today = [row for row in past if _counts_today(row, request.now)]
    battled = Counter(model for row in today for model in {row.model_a, row.model_b})
    closed = {
        k
        for k, (name, model) in enumerate(zip(catalog.names, catalog.ids, strict=True))
        if name in full or battled[model] >= limits.votes_per_model_per_day
    }

    def is_fresh(prompt: int, pair: tuple[int, int]) -> bool:
        """Whether both models have an output to it that this voter has not judged against the other's."""
        one, two = sorted((catalog.ids[pair[0]], catalog.ids[pair[1]]))
        sides = catalog.by_prompt[prompt]
        return prompt not in done and met[prompt, one, two] < min(len(sides[one]), len(sides[two]))

    def is_usable(pair: tuple[int, int]) -> bool:
        many = len(shared[pair]) > len(met) + len(done)
        return many or any(is_fresh(prompt, pair) for prompt in shared[pair])

    usable = {pair for pair in shared if not closed & set(pair) and is_usable(pair)}
    if not usable:
        where = f" in '{request.category}'" if request.category else ""
        raise Refused(
            "exhausted",
            f"You have judged all that there is for you{where}{' today' if closed else ''}. Thank you!",
        )
    choice = choose_pair(
        standing,
        request.battle,
        seed=random.getrandbits(32),
        allowed=catalog.mask(usable),
        floor=settings.matching.floor,
        newcomer_share=settings.matching.newcomer_share,
        newcomer_battles=settings.matching.newcomer_battles,
    )
    i, j = (catalog.names.index(name) for name in choice.pair)
    pair = min(i, j), max(i, j)
    made = catalog.by_prompt[next(p for p in _shuffled(shared[pair], random) if is_fresh(p, pair))]
    seen = {output for row in past for output in (row.output_a, row.output_b)}
    told = {output for row in past if row.revealed is not None for output in (row.output_a, row.output_b)}
    first, second = (_unseen(made[catalog.ids[k]], seen, told, random) for k in (i, j))
    known = first.id in told or second.id in told or names_itself(catalog.naming, first, second)
    return Drawn("plain", first, second, choice.probability, choice.rule, known)


def _shuffled(items: Sequence[int], random: Random) -> Iterator[int]:
    """Yield the items in random order, quickly where only the first few are looked at."""
    for _ in range(8):
        yield random.choice(items)
    yield from random.sample(items, len(items))


def _unseen(outputs: Sequence[Output], seen: set[int], told: set[int], random: Random) -> Output:
    """Return an output that this voter has not seen; else one whose maker they have not been told; else any."""
    new = [output for output in outputs if output.id not in seen]
    return random.choice(new or [output for output in outputs if output.id not in told] or outputs)


_VOTER = select(voters).where(voters.c.id == bindparam("voter")).with_for_update()
_HISTORY = (
    select(
        *(battles.c[name] for name in ("id", "created", "expires", "kind", "prompt", "skipped", "repeats")),
        *(battles.c[name] for name in ("output_a", "output_b", "model_a", "model_b")),
        votes.c.outcome,
        votes.c.created.label("voted"),
        votes.c.revealed,
    )
    .outerjoin(votes, votes.c.battle == battles.c.id)
    .where(battles.c.voter == bindparam("voter"))
    .order_by(battles.c.created.desc())
    .limit(HISTORY)
)
_INSERT = insert(battles)


def names_itself(naming: re.Pattern[str], *answers: Output) -> bool:
    """Whether an answer contains the name of a model in the arena, as a word of its own."""
    return any(output.text and naming.search(output.text) for output in answers)

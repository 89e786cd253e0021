"""How often: counters in the database, so that several workers share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, select

from apps.arena.errors import Refused
from apps.arena.store.schema import counters
from apps.arena.store.sql import insert

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


@dataclass(frozen=True)
class Limit:
    """At most `most` of `name` in each span of `span` ms. `what` completes "Too many ...".

    A name ends in the hash or id of what is limited.
    """

    name: str
    most: int
    span: int
    what: str


def take(connection: Connection, limits: Sequence[Limit], now: int) -> None:
    """Count one more of each. Raises Refused, and thereby counts nothing, where one is used up."""
    for limit in sorted(limits, key=lambda limit: limit.name):  # one order for all, so that workers never deadlock
        begin = now - now % limit.span
        row = {"name": limit.name, "span": begin, "count": 1, "until": begin + limit.span}
        if connection.execute(_one_more(connection.dialect.name), row).scalar_one() > limit.most:
            raise too_many(limit, now)


@cache
def _one_more(dialect: str) -> Any:
    statement = insert(dialect, counters).on_conflict_do_update(
        index_elements=["name", "span"], set_={"count": counters.c.count + 1}
    )
    return statement.returning(counters.c.count)


def check(connection: Connection, limit: Limit, now: int) -> None:
    """Raise Refused where a limit is used up; count nothing."""
    begin = now - now % limit.span
    where = (counters.c.name == limit.name) & (counters.c.span == begin)
    if (connection.execute(select(counters.c.count).where(where)).scalar() or 0) >= limit.most:
        raise too_many(limit, now)


def too_many(limit: Limit, now: int) -> Refused:
    """Return the refusal, which says when to come back."""
    seconds = -(-(limit.span - now % limit.span) // 1000)
    wait = f"{seconds} s" if seconds < 120 else f"{-(-seconds // 60)} min" if seconds < 7200 else f"{seconds // 3600} h"
    return Refused("limit", f"Too many {limit.what}: at most {limit.most}. Come back in {wait}.", retry_after=seconds)

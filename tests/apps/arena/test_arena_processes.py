"""Servers that are killed, and several workers on one PostgreSQL."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from apps.arena.export.log import read_ledger
from apps.arena.service import Arena
from apps.arena.store import schema
from apps.arena.store.schema import metadata
from palate.records import OUTCOMES
from tests.apps.arena import postgres
from tests.apps.arena.prove_kill import prove
from tests.apps.arena.small import PLAIN, Small, small_arena

pytestmark = pytest.mark.launch


def test_killing_the_server_loses_and_doubles_no_acknowledged_vote() -> None:
    counts = prove(kills=4)
    assert counts["votes"] > 4 and counts["lost"] == counts["doubled"] == 0


def work(folder: str, url: str, number: int, tokens: list[tuple[str, str]], results: Any, barrier: Any) -> None:
    """Be one of two workers: vote on own battles, and on battles that both were given."""
    import random

    arena = Arena(Path(folder), PLAIN, url=url)
    small = Small(arena, arena.clock)  # type: ignore[arg-type]
    chance = random.Random(number)
    barrier.wait(60)
    voted = []
    for cookie, token in tokens:
        voter = small.voter()
        voter.http.cookies.set("palate_voter", cookie)
        status, said = voter.post("vote", token=token, outcome="a" if number else "b")
        voted.append((token.split("~")[0], status, said.get("receipt")))
    people = [small.voter() for _ in range(4)]
    lock = threading.Lock()

    def vote(person: Any) -> None:
        for _ in range(8):
            outcome = chance.choice(OUTCOMES)
            token = person.battle()["token"]
            status, said = person.post("vote", token=token, outcome=outcome)
            with lock:
                voted.append((token.split("~")[0], status, said.get("receipt")))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(vote, people))
    results.put(voted)
    arena.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A PostgreSQL server for this module."""
    pytest.importorskip("psycopg")
    if postgres.binaries() is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    with postgres.server() as started:
        yield started


def test_two_workers_share_a_postgresql(tmp_path: Path, url: str) -> None:
    """Each battle that both workers were asked to judge differently has one vote, and one of them a refusal. All that was
    acknowledged is there once, the log agrees, and the migrations make the same tables as on SQLite."""
    context = multiprocessing.get_context("spawn")
    with small_arena(tmp_path, url=url) as small:
        voters = [small.voter() for _ in range(6)]
        shared = [(voter.battle()["token"], voter.http.cookies["palate_voter"]) for voter in voters]
        tokens = [(cookie, token) for token, cookie in shared]
    results, barrier = context.Queue(), context.Barrier(2)
    processes = [
        context.Process(target=work, args=(str(tmp_path), url, number, tokens, results, barrier)) for number in (0, 1)
    ]
    for process in processes:
        process.start()
    told = [vote for _ in processes for vote in results.get(timeout=120)]
    for process in processes:
        process.join(60)
    with small_arena(tmp_path, url=url, packs=()) as small:
        with small.arena.engine.connect() as connection:
            rows = dict(connection.execute(select(schema.votes.c.battle, schema.votes.c.receipt)).tuples().all())
            events = connection.execute(
                select(func.count()).select_from(schema.events).where(schema.events.c.kind == "vote")
            ).scalar()
            stands = {e.event["battle"] for e in read_ledger(connection).entries()}
        small.arena.board.refresh()
        small.arena.board.compute()
        counted = small.arena.board.answer()["votes"]
    acknowledged = {battle: receipt for battle, status, receipt in told if status == 200}
    assert rows == acknowledged and stands == set(rows)
    assert events == len(rows) == counted == 6 + 2 * 4 * 8
    statuses = Counter(status for battle, status, _ in told if battle in {t.split("~")[0] for t, _ in shared})
    assert statuses == {200: 6, 409: 6}


def test_the_migrations_make_the_tables_on_postgresql(tmp_path: Path, url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from apps.arena.store.database import connect

    engine = connect(tmp_path, url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()

"""Votes in the database: any sequence of wishes leaves what it should, and the log tells the same story."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import Connection, insert, select

from apps.arena.errors import Refused
from apps.arena.export.log import read_ledger
from apps.arena.store import schema
from apps.arena.store.database import FILE, connect, open_engine
from apps.arena.store.schema import metadata
from apps.arena.store.writer import Writer
from apps.arena.voting import ballots
from palate.errors import UserError
from palate.records import OUTCOMES

REVEAL_MS = 10_000
VOTERS = ("mia", "noa")


@dataclass
class Expected:
    """What a battle should look like."""

    voter: str
    outcome: str | None = None
    receipt: str = ""
    cast: int = 0
    revealed: bool = False
    skipped: bool = False
    withdrawn: int = 0


def seed_rows(connection: Connection) -> None:
    """Two models and an output of each."""
    connection.execute(insert(schema.prompts), {"digest": "p", "kind": "text", "text": "?", "category": "c"})
    connection.execute(
        insert(schema.models), [{"name": name, "kind": "text", "added": 0} for name in ("left model", "right model")]
    )
    made = [
        {"prompt": 1, "model": n, "digest": str(n), "spoilt": False, "text": str(n), "measures": "{}"} for n in (1, 2)
    ]
    connection.execute(insert(schema.outputs), made)


def battle_row(number: int, voter: str) -> dict[str, Any]:
    return {
        "id": f"{number:032d}",
        "voter": voter,
        "created": 0,
        "expires": 10**15,
        "kind": "plain",
        "category": "c",
        "prompt": 1,
        "output_a": 1,
        "output_b": 2,
        "model_a": 1,
        "model_b": 2,
        "probability": 1.0,
        "rule": "floor",
        "known": False,
    }


class Voting(RuleBasedStateMachine):
    """Votes, repeats, withdrawals, skips, reveals and strangers' tokens in any order, with time passing."""

    battles = Bundle("battles")

    @initialize()
    def open(self) -> None:
        self.connection = open_engine("sqlite://").connect()
        metadata.create_all(self.connection)
        seed_rows(self.connection)
        self.now = 0
        self.expected: dict[str, Expected] = {}

    @rule(target=battles, voter=st.sampled_from(VOTERS))
    def new_battle(self, voter: str) -> str:
        row = battle_row(len(self.expected), voter)
        self.connection.execute(insert(schema.battles), row)
        self.expected[row["id"]] = Expected(voter)
        return row["id"]

    @rule(ms=st.integers(0, 15_000))
    def wait(self, ms: int) -> None:
        self.now += ms

    @rule(battle=battles, outcome=st.sampled_from(OUTCOMES))
    def vote(self, battle: str, outcome: Any) -> None:
        known = self.expected[battle]
        if known.skipped or known.outcome not in (None, outcome):
            with pytest.raises(Refused):
                ballots.vote(self.connection, battle, known.voter, outcome, [], self.now)
            return
        got = ballots.vote(self.connection, battle, known.voter, outcome, [], self.now)
        if known.outcome is None:
            known.outcome, known.receipt, known.cast = outcome, got.receipt, self.now
        assert (got.receipt, got.created, got.outcome) == (known.receipt, known.cast, outcome)

    @rule(battle=battles)
    def undo(self, battle: str) -> None:
        known = self.expected[battle]
        if known.outcome and (known.revealed or self.now >= known.cast + REVEAL_MS):
            with pytest.raises(Refused):
                ballots.undo(self.connection, battle, known.voter, self.now, REVEAL_MS)
            return
        ballots.undo(self.connection, battle, known.voter, self.now, REVEAL_MS)
        known.withdrawn += known.outcome is not None
        known.outcome = None

    @rule(battle=battles)
    def skip(self, battle: str) -> None:
        known = self.expected[battle]
        if known.outcome:
            with pytest.raises(Refused):
                ballots.skip(self.connection, battle, known.voter, self.now)
            return
        ballots.skip(self.connection, battle, known.voter, self.now)
        known.skipped = True

    @rule(battle=battles)
    def reveal(self, battle: str) -> None:
        known = self.expected[battle]
        if known.outcome is None:
            with pytest.raises(Refused):
                ballots.reveal(self.connection, battle, known.voter, self.now)
            return
        shown = ballots.reveal(self.connection, battle, known.voter, self.now)
        assert (shown.a.model, shown.b.model, shown.outcome) == ("left model", "right model", known.outcome)
        known.revealed = True

    @rule(battle=battles, what=st.sampled_from(["vote", "undo", "skip", "reveal"]))
    def a_stranger_tries(self, battle: str, what: str) -> None:
        wishes: dict[str, tuple[Any, ...]] = {"vote": ("a", [], self.now), "undo": (self.now, REVEAL_MS)}
        with pytest.raises(Refused) as refused:
            getattr(ballots, what)(self.connection, battle, "eve", *wishes.get(what, (self.now,)))
        assert refused.value.code == "forged"

    @invariant()
    def the_tables_hold_what_was_acknowledged(self) -> None:
        if not hasattr(self, "connection"):
            return
        rows = {row.battle: row for row in self.connection.execute(select(schema.votes))}
        voted = {battle: known for battle, known in self.expected.items() if known.outcome}
        assert {b: (r.outcome, r.receipt, r.voter) for b, r in rows.items()} == {
            b: (k.outcome, k.receipt, k.voter) for b, k in voted.items()
        }

    @invariant()
    def the_log_tells_the_same(self) -> None:
        if not hasattr(self, "connection"):
            return
        entries = list(read_ledger(self.connection).entries())
        stand = {e.event["battle"]: e.event["outcome"] for e in entries if not e.withdrawn}
        assert stand == {b: k.outcome for b, k in self.expected.items() if k.outcome}
        assert sum(entry.withdrawn for entry in entries) == sum(k.withdrawn for k in self.expected.values())

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()


Voting.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestVoting = Voting.TestCase


def test_a_hundred_parallel_duplicates_leave_one_row(tmp_path: Path) -> None:
    """All get the same receipt; 100 parallel votes of the other kind are all refused."""
    engine = connect(tmp_path)
    writer = Writer(engine)
    writer.run(seed_rows)
    battle = battle_row(0, "mia")
    writer.run(lambda connection: connection.execute(insert(schema.battles), battle))

    def cast(outcome: str) -> Any:
        return lambda connection: ballots.vote(connection, battle["id"], "mia", outcome, [], 5)

    with ThreadPoolExecutor(20) as pool:
        futures = list(pool.map(lambda _: writer.submit(cast("b")), range(100)))
        against = list(pool.map(lambda _: writer.submit(cast("a")), range(100)))
    assert len({future.result().receipt for future in futures}) == 1
    assert all(isinstance(future.exception(), Refused) for future in against)
    with engine.connect() as connection:
        assert len(connection.execute(select(schema.votes)).all()) == 1
        assert len(connection.execute(select(schema.events)).all()) == 1
    writer.close()


def test_sqlite_waits_for_the_disk(tmp_path: Path) -> None:
    """Write-ahead log and synchronous=FULL (2): what is acknowledged survives a loss of power."""
    with connect(tmp_path).connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


@contextmanager
def held(writer: Writer) -> Iterator[None]:
    """Keep the writer busy, so that what is submitted meanwhile becomes one group."""
    began, go = threading.Event(), threading.Event()

    def job(_: Connection) -> None:
        began.set()
        go.wait(30)

    writer.submit(job)
    began.wait(30)
    yield
    go.set()


def test_a_failing_job_undoes_itself_alone(tmp_path: Path) -> None:
    """Of three jobs in one commit the second fails after it wrote; the others' rows stay."""
    engine = connect(tmp_path)
    writer = Writer(engine)

    def put(key: str, fails: bool = False) -> Any:
        def job(connection: Connection) -> str:
            connection.execute(insert(schema.state), {"key": key, "value": ""})
            if fails:
                raise Refused("conflict", "no")
            return key

        return job

    with held(writer):
        futures = [writer.submit(put(key, fails=key == "two")) for key in ("one", "two", "three")]
    assert futures[0].result() == "one" and futures[2].result() == "three"
    assert isinstance(futures[1].exception(), Refused)
    writer.close()
    with engine.connect() as connection:
        assert set(connection.scalars(select(schema.state.c.key))) == {"one", "three"}


def test_a_broken_commit_is_tried_again_job_by_job(tmp_path: Path) -> None:
    """The job that breaks the database's own rules gets its error; the one beside it is committed."""
    engine = connect(tmp_path)
    writer = Writer(engine)
    with held(writer):
        first = writer.submit(lambda c: c.execute(insert(schema.state), {"key": "k", "value": "1"}).rowcount)
        second = writer.submit(lambda c: c.execute(insert(schema.state), {"key": "k", "value": "2"}).rowcount)
    assert first.result() == 1
    assert "UNIQUE" in str(second.exception())
    writer.close()


def test_the_migrations_make_the_tables(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with connect(tmp_path).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    strange = sqlite3.connect(tmp_path / FILE)
    strange.execute("CREATE TABLE recipes (name TEXT)")
    strange.commit()
    with pytest.raises(UserError, match=r"tables that are not an arena's \(recipes\)"):
        connect(tmp_path)


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    connect(tmp_path).dispose()
    newer = sqlite3.connect(tmp_path / FILE)
    newer.execute("UPDATE alembic_version SET version_num = '9999'")
    newer.commit()
    with pytest.raises(UserError, match=r"9999, which this palate does not know: a newer one made it"):
        connect(tmp_path)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("recipes", "is no database URL"),
        ("oracle+nothing://x", "is no database URL"),
        ("sqlite:////nowhere/at/all.db", "Cannot open the arena's database"),
        ("postgresql://palate:secret@/none?host=/nowhere", r"postgresql\+psycopg://palate:\*\*\*@"),
    ],
)
def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        connect(tmp_path, url)
    assert "secret" not in str(refused.value)

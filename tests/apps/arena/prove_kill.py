"""Kill the arena's server with SIGKILL while people vote, start it again, and count: none is lost, none doubled.

python -m tests.apps.arena.prove_kill --kills 200
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from apps.arena.export.log import read_ledger
from apps.arena.packs.importing import import_pack
from apps.arena.service import Arena
from apps.arena.store import schema
from palate.records import OUTCOMES
from tests.apps.arena.small import PLAIN, image_pack

SOCKET = "arena.sock"
OUTCOME_OF_NOTHING = "none"


@dataclass
class Told:
    """What the server acknowledged: battle -> (outcome, receipt); no outcome where the vote was taken back."""

    more: threading.Condition = field(default_factory=threading.Condition)
    votes: dict[str, tuple[str, str]] = field(default_factory=dict)
    answers: int = 0
    repeats: int = 0
    stop: bool = False

    def note(self, battle: str, outcome: str, receipt: str, repeated: bool) -> None:
        with self.more:
            self.votes[battle] = (outcome, receipt)
            self.answers += 1
            self.repeats += repeated
            self.more.notify_all()


def serve(folder: str) -> None:
    """Be the server, until killed."""
    import uvicorn

    from apps.arena.web.app import create_app

    os.setpgrp()
    app = create_app(Arena(Path(folder), PLAIN), ui=False)
    uvicorn.run(app, uds=f"{folder}/{SOCKET}", log_level="critical", proxy_headers=False)


class Unix(http.client.HTTPConnection):
    """HTTP over the server's socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Person:
    """Votes without end; whatever gets no answer is asked again, as a browser would."""

    def __init__(self, folder: str, told: Told, number: int) -> None:
        self.path, self.told, self.random = f"{folder}/{SOCKET}", told, random.Random(number)
        self.http, self.cookie = Unix(self.path), ""

    def ask(self, path: str, **body: Any) -> tuple[int, dict[str, Any], bool]:
        """Return status, JSON and whether it was asked more than once."""
        again = False
        while True:
            try:
                headers = {"Content-Type": "application/json", "Cookie": self.cookie}
                self.http.request("POST", f"/api/{path}", json.dumps(body), headers)
                answer = self.http.getresponse()
                content = json.loads(answer.read())
                self.cookie = (answer.getheader("set-cookie") or self.cookie).split(";")[0]
                return answer.status, content, again
            except (OSError, http.client.HTTPException, ValueError):
                again = True
                self.http.close()
                time.sleep(0.01)  # the server is being started

    def vote_on(self) -> None:
        while not self.told.stop:
            status, battle, _ = self.ask("battle")
            if status == 409:  # has seen everything
                self.cookie = ""
                continue
            assert status == 200, battle
            token, outcome = battle["token"], self.random.choice(OUTCOMES)
            name = token.split("~")[0]
            status, receipt, again = self.ask("vote", token=token, outcome=outcome)
            assert status == 200, receipt
            self.told.note(name, outcome, receipt["receipt"], again)
            if self.random.random() < 0.2:
                status, undone, again = self.ask("undo", token=token)
                assert status == 200, undone
                self.told.note(name, OUTCOME_OF_NOTHING, "", again)


def prove(kills: int, people: int = 8, seed: int = 0) -> dict[str, int]:
    """Kill the server so many times and return the counts. Raises AssertionError where a vote is lost or doubled."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["uvicorn", "apps.arena.web.app", "tests.apps.arena.small"])
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="palate-kill-") as folder:
        arena = Arena(Path(folder), PLAIN)
        import_pack(arena.writer, arena.media, image_pack(prompts=60, seeds=1), arena.clock())
        arena.close()
        told = Told()
        threads = [
            threading.Thread(target=Person(folder, told, number).vote_on, daemon=True) for number in range(people)
        ]
        for number in range(kills + 1):
            server = context.Process(target=serve, args=(folder,), daemon=True)
            server.start()
            if number == 0:
                for thread in threads:
                    thread.start()
            with told.more:
                goal = told.answers + chance.randrange(1, 40)
                assert told.more.wait_for(lambda goal=goal: told.answers >= goal, 120), "the server does not answer"
                told.stop = number == kills
            if told.stop:
                for thread in threads:
                    thread.join(120)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            server.join()
        return {"kills": kills, "asked again": told.repeats, **compare(Path(folder), told)}


def compare(folder: Path, told: Told) -> dict[str, int]:
    """Hold the database against what was acknowledged."""
    arena = Arena(folder, PLAIN)
    with arena.engine.connect() as connection:
        rows = [(row.battle, (row.outcome, row.receipt)) for row in connection.execute(select(schema.votes))]
        ledger = read_ledger(connection)
    arena.close()
    stands = {battle: vote for battle, vote in told.votes.items() if vote[0] != OUTCOME_OF_NOTHING}
    assert len(rows) == len(dict(rows)), "a vote is there twice"
    assert stands.items() <= dict(rows).items(), "an acknowledged vote is lost or changed"
    assert dict(rows).items() <= stands.items(), "there is a vote that nobody cast, or one that was taken back"
    logged = Counter(entry.event["battle"] for entry in ledger.entries() if not entry.withdrawn)
    assert logged == Counter(stands.keys()), "the log tells another story"
    return {"votes": len(stands), "taken back": len(told.votes) - len(stands), "lost": 0, "doubled": 0}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the proof and print its counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.apps.arena.prove_kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="times that the server is killed (default: 200)")
    parser.add_argument("--people", type=int, default=8, help="people who vote at once (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of killing (default: 0)")
    args = parser.parse_args(argv)
    began = time.monotonic()
    counts = prove(args.kills, args.people, args.seed)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()), f"({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()

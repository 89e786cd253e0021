"""How many durable votes a second the arena takes, and how long a voter waits for the reveal.

    python -m benchmarks.arena api

The server is a process of its own on a socket of this machine: FastAPI with the page mounted, SQLite with
synchronous=FULL, group commit. A battle is chosen by matchmaking and recorded, then its vote; both are on disk before they
are answered. First votes alone, then battles and votes, as many as the server takes; then people at the page: each asks for
what the page's script asks for (the battle, both pictures, vote, reveal, with the next battle fetched ahead) and thinks
between votes.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.measuring import machine, write_section

TITLE = "## Arena: votes and people"
SOCKET = "arena.sock"
PICTURES = "pictures"
ANSWERS = "answers"
STEPS = ("page", "battle", "pictures", "vote", "vote to reveal")


@dataclass
class Measured:
    """Seconds of each step, by name."""

    steps: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STEPS})

    def percentile(self, name: str, percent: float) -> float:
        """Return milliseconds."""
        return float(np.percentile(1000 * np.array(self.steps[name]), percent))

    def line(self, name: str) -> str:
        p50, p95, p99 = (self.percentile(name, percent) for percent in (50, 95, 99))
        return f"  {name:<15} p50 {p50:7.1f} ms   p95 {p95:7.1f} ms   p99 {p99:7.1f} ms"


class Session:
    """One voter's connection."""

    def __init__(self, path: str) -> None:
        self.path, self.cookie = path, ""

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_unix_connection(self.path)

    async def ask(self, verb: str, path: str, content: str = "") -> bytes:
        length = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
        self.writer.write(f"{verb} {path} HTTP/1.1\r\nHost: x\r\n{length}{self.cookie}\r\n{content}".encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        if "set-cookie" in headers:
            self.cookie = f"Cookie: {headers['set-cookie'].split(';')[0]}\r\n"
        answer = await self.reader.readexactly(int(headers["content-length"]))
        if not head.startswith("HTTP/1.1 200"):
            raise RuntimeError(f"{path}: {answer!r}")
        return answer

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await self.ask("POST", f"/api/{path}", json.dumps(body)))
        return answer

    async def battle(self, measured: Measured, category: str) -> dict[str, Any]:
        """Return a battle, with its pictures fetched."""
        began = time.perf_counter()
        battle = await self.post("battle", category=category)
        measured.steps["battle"].append(time.perf_counter() - began)
        for side in ("a", "b"):
            if "url" in battle[side]:
                began = time.perf_counter()
                await self.ask("GET", battle[side]["url"])
                measured.steps["pictures"].append(time.perf_counter() - began)
        return battle

    async def vote(self, measured: Measured, token: str, reveal: bool = False) -> None:
        began = time.perf_counter()
        await self.post("vote", token=token, outcome=random.choice(("a", "b", "tie", "both_bad")))
        measured.steps["vote"].append(time.perf_counter() - began)
        if reveal:
            await self.post("reveal", token=token)
            measured.steps["vote to reveal"].append(time.perf_counter() - began)


def serve(folder: str) -> None:
    """Be the server."""
    import uvicorn

    from apps.arena.service import Arena
    from apps.arena.web.app import create_app

    app = create_app(Arena(Path(folder), _settings()))
    uvicorn.run(app, uds=f"{folder}/{SOCKET}", log_level="critical", proxy_headers=False)


def _settings() -> Any:
    from apps.arena.settings import ArenaSettings, Checks, Limits

    many = 10**9
    limits = Limits(
        battles_per_minute=many,
        network_battles_per_minute=many,
        network_voters_per_day=many,
        votes_per_day=many,
        votes_per_model_per_day=many,
        model_votes_per_day=many,
        battles_per_prompt=many,
    )
    return ArenaSettings(limits=limits, checks=Checks(0.0, 0.0))


def fill(folder: Path, models: int, prompts: int) -> None:
    """Import answers, where the database and the server are all that is measured, and pictures, as a voter gets them."""
    from PIL import Image

    from apps.arena.packs.format import Pack, PackItem, PackOutput
    from apps.arena.packs.importing import import_pack
    from apps.arena.service import Arena

    names, draws = [f"model-{m:02d}" for m in range(models)], np.random.default_rng(0)
    painters, files = [f"painter-{m:02d}" for m in range(models)], dict[str, bytes]()
    answers, pictures = [], []
    for n in range(prompts):
        said = tuple(PackOutput(name, text=f"Answer {n} of {name}.") for name in names)
        answers.append(PackItem(f"Question {n}?", said, ANSWERS))
    for n in range(max(1, prompts // 10)):
        for name in painters:
            made, buffer = draws.integers(0, 256, (128, 128, 3), dtype=np.uint8), io.BytesIO()
            Image.fromarray(made).save(buffer, "PNG")
            files[f"{name}-{n}.png"] = buffer.getvalue()
        drawn = tuple(PackOutput(name, file=f"{name}-{n}.png") for name in painters)
        pictures.append(PackItem(f"a thing number {n}", drawn, PICTURES))
    arena = Arena(folder, _settings())
    import_pack(arena.writer, arena.media, Pack("benchmark", (*answers, *pictures), "b" * 32, files.__getitem__), 0)
    arena.close()


async def saturate(path: str, connections: int, seconds: float) -> tuple[float, Measured]:
    """Return votes per second by so many connections without pauses. Each is a new voter after 100 votes."""
    measured, until = Measured(), time.perf_counter() + seconds

    async def run() -> None:
        session = Session(path)
        await session.open()
        cast = 0
        while time.perf_counter() < until:
            if cast % 100 == 0:
                session.cookie = ""
            await session.vote(measured, (await session.battle(measured, ANSWERS))["token"])
            cast += 1

    began = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(connections)))
    return len(measured.steps["vote"]) / (time.perf_counter() - began), measured


async def prefetched(path: str, connections: int, each: int) -> tuple[float, Measured]:
    """Return votes per second on battles that were fetched before, as the page does."""
    measured, sessions = Measured(), [Session(path) for _ in range(connections)]

    async def fetch(session: Session) -> list[str]:
        await session.open()
        return [(await session.battle(measured, ANSWERS))["token"] for _ in range(each)]

    async def run(session: Session, tokens: list[str]) -> None:
        for token in tokens:
            await session.vote(measured, token)

    tokens = await asyncio.gather(*(fetch(session) for session in sessions))
    began = time.perf_counter()
    await asyncio.gather(*(run(session, those) for session, those in zip(sessions, tokens, strict=True)))
    return connections * each / (time.perf_counter() - began), measured


async def think(path: str, sessions: int, pause: float, seconds: float, arrive: float) -> tuple[float, Measured]:
    """Return votes per second of so many people at the page who think for `pause` seconds on average before each vote.

    They come one after the other within the first `arrive` seconds, which do not count.
    """
    measured, warm = Measured(), Measured()
    start = time.perf_counter() + arrive
    until = start + seconds

    def noted() -> Measured:
        return measured if time.perf_counter() >= start else warm

    async def run(number: int) -> None:
        session = Session(path)
        await asyncio.sleep(arrive * number / sessions)
        await session.open()
        began = time.perf_counter()
        await session.ask("GET", "/")
        noted().steps["page"].append(time.perf_counter() - began)
        battle = await session.battle(noted(), PICTURES)
        while True:
            ahead = await session.battle(noted(), PICTURES)
            session.writer.close()  # an idle connection is closed by the server
            left = until - time.perf_counter()
            wait = random.expovariate(1 / pause)
            await asyncio.sleep(min(wait, max(left, 0)))
            if wait >= left:
                return
            await session.open()
            await session.vote(noted(), battle["token"], reveal=True)
            battle = ahead

    await asyncio.gather(*(run(number) for number in range(sessions)))
    return len(measured.steps["vote"]) / (time.perf_counter() - start), measured


def _section(
    args: argparse.Namespace, first: float, both: tuple[float, float], people: tuple[float, Measured]
) -> list[str]:
    """Return the section of RESULTS.md. first, both[0]: votes per second; both[1]: ms of CPU; people: as `think` returns."""
    cores, cpu = len(os.sched_getaffinity(0)), machine("cpu").removeprefix("one thread of ")
    lines = [
        f"{date.today()}, {cores} cores of {cpu} for the server and who asks it; {args.models} models. SQLite with "
        f"synchronous=FULL. {args.connections} connections without pauses, each with {args.each} battles fetched before; "
        f"then {args.sessions} people at the page, who came within {args.arrive:g} s and think for {args.pause:g} s on "
        f"average, {args.seconds:g} s long.",
        "",
        "| | measured | aim |",
        "|---|---|---|",
        f"| durable votes/s, battles fetched before | {first:.0f} | >= 500 |",
        f"| durable votes/s, each with its battle | {both[0]:.0f} | |",
        f"| ms of the server's CPU for a battle and its vote | {both[1]:.2f} | |",
        f"| votes/s of people at the page | {people[0]:.0f} | >= 50 |",
    ]
    if people[1].steps["vote to reveal"]:
        lines.append(
            f"| vote to reveal, people at the page, p95 ms | {people[1].percentile('vote to reveal', 95):.0f} | <= 150 |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; with `--write`, write the section of RESULTS.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arena api", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part (default: 20)")
    parser.add_argument("--connections", type=int, default=64, help="of the parts without people (default: 64)")
    parser.add_argument("--each", type=int, default=50, help="votes of each on battles fetched before (default: 50)")
    parser.add_argument("--sessions", type=int, default=400, help="people at the page (default: 400)")
    parser.add_argument("--pause", type=float, default=7.5, help="mean seconds that they think (default: 7.5)")
    parser.add_argument(
        "--arrive", type=float, default=30.0, help="seconds in which they come, not counted (default: 30)"
    )
    parser.add_argument("--models", type=int, default=20, help="models in the arena (default: 20)")
    parser.add_argument("--folder", type=Path, help="where the database lies (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="write the section of benchmarks/RESULTS.md")
    args = parser.parse_args(argv)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="palate-bench-", dir=args.folder) as folder:
        fill(Path(folder), args.models, 200)
        server = context.Process(target=serve, args=(folder,), daemon=True)
        server.start()
        path = f"{folder}/{SOCKET}"
        while not os.path.exists(path):
            time.sleep(0.05)
        process = psutil.Process(server.pid)

        def used() -> float:
            return sum(process.cpu_times()[:2])

        before = used()
        first, measured = asyncio.run(prefetched(path, args.connections, args.each))
        print(f"{first:.0f} durable votes/s on battles fetched before, by {args.connections} connections")
        print(measured.line("vote"))
        cost = used() - before
        both, measured = asyncio.run(saturate(path, args.connections, args.seconds))
        cost = 1000 * (used() - before - cost) / len(measured.steps["vote"])
        print(f"{both:.0f} durable votes/s, each with its battle; {cost:.2f} ms of the server's CPU for both")
        print(measured.line("battle"), measured.line("vote"), sep="\n")
        rate, measured = asyncio.run(think(path, args.sessions, args.pause, args.seconds, args.arrive))
        print(f"{args.sessions} people at the page who think for {args.pause:g} s: {rate:.0f} votes/s")
        print(*(measured.line(name) for name in STEPS if measured.steps[name]), sep="\n")
        server.terminate()
        server.join()
    if args.write:
        write_section(TITLE, "\n".join(_section(args, first, (both, cost), (rate, measured))))

"""A small arena in a folder, its clock in the test's hands, and voters that speak HTTP without a network."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from threading import Event
from typing import Any, Literal

import numpy as np
from PIL import Image, PngImagePlugin
from sqlalchemy import event
from starlette.testclient import TestClient

from apps.arena.packs.format import Pack, PackItem, PackOutput
from apps.arena.packs.importing import import_pack
from apps.arena.service import Arena
from apps.arena.settings import ArenaSettings, Checks, Limits
from apps.arena.web.app import create_app
from palate.records import Media

START = 1_800_000_000_000
MODELS = ("anchor", "bravo", "coral")
OPEN = Limits(
    battles_per_minute=10**6,
    network_battles_per_minute=10**6,
    network_voters_per_day=10**6,
    votes_per_day=10**6,
    votes_per_model_per_day=10**6,
    battles_per_prompt=10**6,
)
PLAIN = ArenaSettings(limits=OPEN, checks=Checks(gold_share=0.0, repeat_share=0.0), bootstraps=20)
"""No limit is in the way and no battle is a check."""


@dataclass
class Clock:
    """Milliseconds that stand still until a test moves them."""

    now: int = START

    def __call__(self) -> int:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += round(seconds * 1000)


def picture(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Return noise: no two seeds look alike."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class Painter:
    """A model whose picture a test waits for."""

    kind: Literal["image", "text"] = "image"

    def __init__(self, name: str, go: Event, fails: bool = False) -> None:
        self.name, self.go, self.fails = name, go, fails
        self.asked: list[tuple[str, int]] = []

    def make(self, prompt: str, question: Media | None, seed: int) -> Image.Image:
        self.asked.append((prompt, seed))
        assert self.go.wait(30)
        if self.fails:
            raise RuntimeError("out of paint")
        return picture(seed % 10_000)


def named_png(image: Image.Image, model: str) -> bytes:
    """Return a PNG that gives its maker away in every way that a PNG can."""
    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", f"made by {model}")
    told.add_itxt("model", model)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=told, exif=_exif(model), dpi=(300, 300))
    return buffer.getvalue() + model.encode()


def _exif(model: str) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = model
    return exif


def image_pack(prompts: int = 6, models: tuple[str, ...] = MODELS, seeds: int = 2) -> Pack:
    """Return a pack of noise whose files tell who made them."""
    files: dict[str, bytes] = {}
    items = []
    for number in range(prompts):
        outputs = []
        for place, model in enumerate(models):
            for seed in range(seeds):
                name = f"{model}-{number}-{seed}.png"
                files[name] = named_png(picture(1000 * number + 10 * place + seed), model)
                outputs.append(PackOutput(model, file=name, seed=seed))
        items.append(PackItem(f"a thing number {number}", tuple(outputs), category="odd" if number % 2 else "even"))
    return Pack("small", tuple(items), f"{prompts}{models}{seeds}".encode().hex()[:32], files.__getitem__)


def answer_pack(questions: int = 4) -> Pack:
    """Return a pack of answers to questions about pictures."""
    files = {f"{n}.png": named_png(picture(n), "camera") for n in range(questions)}
    items = []
    for number in range(questions):
        outputs = (
            PackOutput("terse", text=f"It is thing **{number}**."),
            PackOutput("wordy", text=f"This picture shows, as far as one can see, the thing that is number {number}."),
        )
        items.append(PackItem("What is this?", outputs, "answers", f"{number}.png"))
    return Pack("answers", tuple(items), f"answers{questions}".encode().hex()[:32], files.__getitem__)


@dataclass
class Small:
    """An arena with its clock."""

    arena: Arena
    clock: Clock
    clients: list[TestClient] = field(default_factory=list)

    def voter(self, **headers: str) -> Voter:
        """Return somebody new."""
        return Voter(TestClient(create_app(self.arena, ui=False), headers=headers), self.clock)


@dataclass
class Voter:
    """A browser: its cookies, and what it asks."""

    http: TestClient
    clock: Clock

    def post(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """Return (status, JSON)."""
        answer = self.http.post(f"/api/{path}", json=body)
        return answer.status_code, answer.json()

    def battle(self, **wanted: Any) -> dict[str, Any]:
        status, battle = self.post("battle", **wanted)
        assert status == 200, battle
        return battle

    def vote(self, outcome: str = "a", reveal: bool = False, pause: float = 5.0) -> dict[str, Any]:
        """Ask for a battle and vote on it, at a human pace."""
        battle = self.battle()
        self.clock.pass_seconds(pause)
        status, receipt = self.post("vote", token=battle["token"], outcome=outcome)
        assert status == 200, receipt
        if reveal:
            return {**battle, **self.post("reveal", token=battle["token"])[1]}
        return battle


@contextmanager
def small_arena(
    folder: Path,
    settings: ArenaSettings = PLAIN,
    packs: tuple[Pack, ...] | None = None,
    url: str | None = None,
    **changed: Any,
) -> Iterator[Small]:
    """Open an arena with a small pack. changed: settings that differ."""
    clock = Clock()
    arena = Arena(folder, replace(settings, **changed), clock=clock, random=Random(0), url=url)
    if url is None:  # these tests lose no power; those that check durability open the database themselves
        event.listen(arena.engine, "checkout", lambda connection, *_: connection.execute("PRAGMA synchronous=OFF"))
    try:
        for pack in (image_pack(),) if packs is None else packs:
            import_pack(arena.writer, arena.media, pack, clock())
        arena.board.refresh()
        yield Small(arena, clock)
    finally:
        arena.close()

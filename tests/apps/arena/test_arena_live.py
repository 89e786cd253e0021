"""Battles on prompts that voters type: the queue, what it tells, and models behind it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from apps.arena.live.makers import AnswerMaker, ImageMaker, load_makers
from apps.arena.packs.media import encode
from apps.arena.settings import ArenaSettings, Checks, Limits, Live
from apps.arena.store import schema
from palate.errors import UserError
from palate.records import Media
from tests.apps.arena.small import OPEN, Painter, Small, Voter, named_png, picture, small_arena
from tests.tiny import tiny_sd
from tests.tiny_vlm import save_tiny_vlm
from vlm.loading import load_model

SETTINGS = ArenaSettings(limits=OPEN, checks=Checks(0.0, 0.0), live=Live(steps=1, queue=3, release_seconds=5))


class Speaker:
    """A model that answers at once, and introduces itself if asked."""

    kind = "text"

    def __init__(self, name: str) -> None:
        self.name = name

    def make(self, prompt: str, question: Media | None, seed: int) -> str:
        size = question.decode().size if question is not None else None
        return f"I am {self.name}." if "who" in prompt else f"{size} seen at {seed}"


@contextmanager
def live_arena(folder: Path, makers: list[Any], settings: ArenaSettings = SETTINGS) -> Iterator[Small]:
    with small_arena(folder, settings, packs=()) as small:
        small.arena.start_live(makers)
        yield small


def fetch(voter: Voter, ticket: str) -> dict[str, Any]:
    """Ask until the battle is there, as the page does; the clock moves on by the seconds of its polls."""
    for _ in range(2000):
        status, answer = voter.post("battle", ticket=ticket)
        if status != 202:
            return {"status": status, **answer}
        voter.clock.pass_seconds(1)
        threading.Event().wait(0.01)
    raise AssertionError("the battle never came")


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    """Queued with a position, both sides at once, seeds of their own, names only after the vote, and nobody else's."""
    go = threading.Event()
    painters = [Painter("anchor", go), Painter("bravo", go)]
    with live_arena(tmp_path, painters) as small:
        voter, other = small.voter(), small.voter()
        assert voter.http.get("/api/arena").json()["live"] == {"kinds": ["image"], "prompt_characters": 2000}
        status, queued = voter.post("battle", prompt="  a  blue\ncat ")
        assert status == 202 and queued["position"] == 0
        status, second = other.post("battle", prompt="a dog")
        assert second["position"] == 1
        assert other.post("battle", ticket=queued["ticket"])[0] == 403
        go.set()
        battle = fetch(voter, queued["ticket"])
        assert battle["status"] == 200 and battle["prompt"] == "a blue cat" and battle["category"] == "live"
        assert "anchor" not in str(battle) and "bravo" not in str(battle)
        assert voter.post("battle", ticket=queued["ticket"])[0] == 404
        assert voter.http.get(battle["b"]["url"]).status_code == 200
        assert voter.post("vote", token=battle["token"], outcome="a")[0] == 200
        shown = voter.post("reveal", token=battle["token"])[1]
        assert shown["kind"] == "live" and {shown["a"]["model"], shown["b"]["model"]} == {"anchor", "bravo"}
        assert {shown["a"]["seed"], shown["b"]["seed"]} == {painter.asked[0][1] for painter in painters}
        assert shown["a"]["seed"] != shown["b"]["seed"]
        fetch(other, second["ticket"])
        assert other.post("battle")[1]["error"] == "exhausted"  # what others typed is not shown around
        small.arena.board.refresh()
        small.arena.board.compute()
        assert small.arena.board.answer()["votes"] == 1
        deleted = voter.post("me/delete")[1]
        assert (deleted["prompts"], deleted["votes"]) == (1, 1)
        assert len(list((tmp_path / "media").rglob("*.png"))) == 2  # the other voter's


def test_both_sides_are_released_together_and_late(tmp_path: Path) -> None:
    """A battle drawn in no time is not shown before 5 seconds have passed: time says nothing."""
    go = threading.Event()
    go.set()
    with live_arena(tmp_path, [Painter("anchor", go), Painter("bravo", go)]) as small:
        voter = small.voter()
        ticket = voter.post("battle", prompt="a cat")[1]["ticket"]
        with small.arena.engine.connect() as connection:
            for _ in range(1000):
                if connection.execute(select(func.count()).select_from(schema.battles)).scalar():
                    break
                connection.rollback()
                threading.Event().wait(0.01)
        for _ in range(5):
            assert voter.post("battle", ticket=ticket)[0] == 202
            small.clock.pass_seconds(1)
        assert fetch(voter, ticket)["status"] == 200


def test_a_failing_model_and_a_full_queue_are_said(tmp_path: Path) -> None:
    go = threading.Event()
    with live_arena(tmp_path, [Painter("anchor", go, fails=True), Painter("bravo", go)]) as small:
        voter = small.voter()
        tickets = [voter.post("battle", prompt=f"cat {n}")[1]["ticket"] for n in range(3)]
        status, said = voter.post("battle", prompt="one more")
        assert (status, said["error"]) == (503, "busy") and "queue is full" in said["message"]
        go.set()
        answers = [fetch(voter, ticket) for ticket in tickets]
        assert all(a["status"] == 503 and "failed on this prompt" in a["message"] for a in answers)
        assert "paint" not in str(answers)


def test_limits_of_live_battles(tmp_path: Path) -> None:
    limits = Limits(**{**vars(OPEN), "live_per_hour": 2, "prompt_live_per_hour": 2, "prompt_characters": 20})
    go = threading.Event()
    go.set()
    settings = ArenaSettings(limits=limits, checks=Checks(0.0, 0.0), live=Live(queue=100))
    with live_arena(tmp_path, [Painter("anchor", go), Painter("bravo", go)], settings) as small:
        voter = small.voter()
        assert voter.post("battle", prompt="x" * 21)[0] == voter.post("battle", prompt=" \n ")[0] == 400
        assert voter.post("battle", prompt="is it?", image="no")[0] == 400
        assert [voter.post("battle", prompt=f"cat {n}")[0] for n in range(3)] == [202, 202, 429]
        assert [small.voter().post("battle", prompt="same")[0] for _ in range(3)] == [202, 202, 429]


def test_a_question_about_a_picture_of_ones_own(tmp_path: Path) -> None:
    """Uploaded, stripped, asked about; an answer with a model's name makes the vote one of known identity."""
    with live_arena(tmp_path, [Speaker("anchor"), Speaker("bravo")]) as small:
        voter = small.voter()
        upload = voter.http.post("/api/upload", content=named_png(picture(7), "my camera"))
        image = upload.json()["image"]
        assert small.voter().post("battle", prompt="what is it?", image=image)[0] == 403
        battle = fetch(voter, voter.post("battle", prompt="what is it?", image=image)[1]["ticket"])
        assert battle["kind"] == "text" and battle["a"]["markdown"].startswith("(24, 16) seen at")
        question = voter.http.get(battle["question_image"]["url"])
        assert question.content == encode(picture(7))
        telling = fetch(voter, voter.post("battle", prompt="who are you?", image=image)[1]["ticket"])
        with small.arena.engine.connect() as connection:
            known = dict(connection.execute(select(schema.battles.c.id, schema.battles.c.known)).tuples().all())
        assert known == {battle["token"][:32]: False, telling["token"][:32]: True}
        assert voter.http.post("/api/upload", content=b"GIF89a").status_code == 400
        large = voter.http.post("/api/upload", content=b"x" * (SETTINGS.limits.upload_bytes + 1))
        assert large.status_code == 413


def test_without_live_models_prompts_are_refused(small: Small) -> None:
    voter = small.voter()
    for answer in (voter.post("battle", prompt="a cat"), voter.post("battle", ticket="x")):
        assert answer[0] == 400 and "no prompts of your own" in answer[1]["message"]


def test_a_pipeline_draws_by_seed() -> None:
    maker = ImageMaker("tiny", tiny_sd(), Live(steps=1))
    maker_again = [maker.make("a cat", None, seed).tobytes() for seed in (3, 3, 4)]
    assert maker_again[0] == maker_again[1] != maker_again[2]


def test_a_vision_language_model_answers_by_seed(tmp_path: Path) -> None:
    loaded = load_model(str(save_tiny_vlm("llava", tmp_path)))
    maker, question = AnswerMaker("tiny", loaded, Live(answer_tokens=6, temperature=1.0)), Media.image(picture(1))
    said = [maker.make("what is it", question, seed) for seed in (3, 3, 4)]
    assert said[0] == said[1] != said[2]


def test_live_models_are_named(tmp_path: Path) -> None:
    for words, said in (
        (["base"], "'base' should read NAME=MODEL"),
        (["a=toy:sd"], "One live model cannot battle itself"),
        (["a=/nowhere", "b=/nowhere"], "/nowhere"),
    ):
        with pytest.raises(UserError, match=said):
            load_makers(words, [], Live())

"""The arena over HTTP: what a voter can do, how often, and what they cannot find out."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import func, select

from apps.arena.export.log import read_ledger
from apps.arena.store.schema import battles, events, models, votes
from palate.records import OUTCOMES
from tests.apps.arena.small import MODELS, Small, answer_pack, small_arena

HEX = re.compile(r"[0-9a-f]{32}~[ab]\.[\w-]+")


def count(small: Small, table: object = votes) -> int:
    with small.arena.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()  # type: ignore[arg-type]


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_vote_is_recorded_as_it_was_cast(small: Small, outcome: str) -> None:
    voter = small.voter()
    battle = voter.battle()
    status, receipt = voter.post("vote", token=battle["token"], outcome=outcome, reasons=["flaws", "prompt", "flaws"])
    assert status == 200 and receipt["reveal_after"] == 10
    with small.arena.engine.connect() as connection:
        row = connection.execute(select(votes)).one()
    assert (row.outcome, row.reasons, row.receipt) == (outcome, '["prompt", "flaws"]', receipt["receipt"])


def test_a_repeat_gets_the_same_receipt_and_another_outcome_is_refused(small: Small) -> None:
    voter = small.voter()
    token = voter.battle()["token"]
    first = voter.post("vote", token=token, outcome="a")
    assert voter.post("vote", token=token, outcome="a") == first
    status, said = voter.post("vote", token=token, outcome="b")
    assert status == 409 and said["error"] == "conflict" and "'a' stands" in said["message"]
    assert count(small) == 1


def test_undo_until_the_reveal(small: Small) -> None:
    """After an undo another vote can be cast; after the reveal nothing can be taken back; all of it is in the log."""
    voter = small.voter()
    token = voter.battle()["token"]
    first = voter.post("vote", token=token, outcome="a")[1]["receipt"]
    assert voter.post("undo", token=token) == (200, {"ok": True})
    assert voter.post("undo", token=token) == (200, {"ok": True})
    assert count(small) == 0
    assert voter.post("vote", token=token, outcome="tie")[1]["receipt"] != first
    shown = voter.post("reveal", token=token)[1]
    assert {shown["a"]["model"], shown["b"]["model"]} < set(MODELS) and shown["outcome"] == "tie"
    assert voter.post("reveal", token=token)[1] == shown
    assert voter.post("undo", token=token)[0] == 409
    with small.arena.engine.connect() as connection:
        kinds = list(connection.scalars(select(events.c.kind).order_by(events.c.id)))
    assert kinds == ["import", "vote", "withdraw", "vote", "reveal"]


def test_undo_ends_after_ten_seconds_without_a_reveal(small: Small) -> None:
    voter = small.voter()
    token = voter.battle()["token"]
    voter.post("vote", token=token, outcome="a")
    small.clock.pass_seconds(9.999)
    assert voter.post("undo", token=token)[0] == 200
    voter.post("vote", token=token, outcome="a")
    small.clock.pass_seconds(10)
    assert voter.post("undo", token=token)[0] == 409


def test_nothing_is_revealed_before_the_vote(small: Small) -> None:
    voter = small.voter()
    token = voter.battle()["token"]
    status, said = voter.post("reveal", token=token)
    assert status == 409 and not any(model in str(said) for model in MODELS)
    voter.post("vote", token=token, outcome="a")
    voter.post("undo", token=token)
    assert voter.post("reveal", token=token)[0] == 409


def test_a_skip_is_an_event_and_ends_the_battle(small: Small) -> None:
    voter = small.voter()
    token = voter.battle()["token"]
    assert voter.post("skip", token=token) == voter.post("skip", token=token) == (200, {"ok": True})
    assert voter.post("vote", token=token, outcome="a")[0] == 409
    assert (count(small), count(small, events)) == (0, 2)  # the import and one skip
    other = voter.battle()["token"]
    voter.post("vote", token=other, outcome="a")
    assert voter.post("skip", token=other)[0] == 409


def test_no_answer_before_the_vote_tells_who_made_what(small: Small) -> None:
    """Bodies, headers and the files' bytes hold no model's name, and the two sides differ in nothing but pixels."""
    voter = small.voter()
    for _ in range(10):
        answer = voter.http.post("/api/battle", json={})
        battle = answer.json()
        sides = [voter.http.get(battle[side]["url"]) for side in "ab"]
        for seen in (answer, *sides):
            assert seen.status_code == 200
            whole = seen.content + str(seen.headers.raw).encode()
            assert not any(model.encode() in whole for model in MODELS)
        assert dict(sides[0].headers) == dict(sides[1].headers)
        assert len(battle["a"]["url"]) == len(battle["b"]["url"])
        assert all(HEX.search(battle[side]["url"]) for side in "ab")
        pictures = [Image.open(io.BytesIO(side.content)) for side in sides]
        assert pictures[0].size == pictures[1].size == (battle["a"]["width"], battle["a"]["height"])
        assert all(picture.format == "PNG" and picture.mode == "RGB" and not picture.info for picture in pictures)


def test_sides_are_dealt_evenly(small: Small) -> None:
    """Of 64 battles about half show the model with the smaller id as A: within 4 standard deviations, 16."""
    voter = small.voter()
    for _ in range(64):
        voter.http.cookies.clear()
        voter.battle()
    with small.arena.engine.connect() as connection:
        rows = connection.execute(select(battles.c.model_a, battles.c.model_b)).all()
    assert abs(sum(a < b for a, b in rows) - 32) <= 16


def test_probabilities_of_pairs_are_stored(small: Small) -> None:
    voter = small.voter()
    voter.battle()
    with small.arena.engine.connect() as connection:
        row = connection.execute(select(battles)).one()
        names = dict(connection.execute(select(models.c.id, models.c.name)).tuples().all())
    assert row.probability == pytest.approx(1 / 3) and {names[row.model_a], names[row.model_b]} < set(MODELS)
    assert row.rule in ("ambiguity", "floor", "newcomer")


def test_a_battle_of_answers(tmp_path: Path) -> None:
    with small_arena(tmp_path, packs=(answer_pack(),)) as small:
        voter = small.voter()
        battle = voter.battle(category="answers")
        assert battle["kind"] == "text" and battle["prompt"] == "What is this?"
        assert {"terse", "wordy"}.isdisjoint(str(battle).split())
        question = voter.http.get(battle["question_image"]["url"])
        assert question.headers["content-type"] == "image/png" and b"camera" not in question.content
        assert set(battle["a"]) == set(battle["b"]) == {"markdown", "html"}
        assert battle["reasons"][0]["key"] == "correct"
        assert voter.post("vote", token=battle["token"], outcome="b", reasons=["seen"])[0] == 200
        assert voter.post("battle", category="none")[0] == 400


def test_what_does_not_fit_is_refused_in_words(small: Small) -> None:
    voter = small.voter()
    token = voter.battle()["token"]
    for body, said in (
        ({"token": token, "outcome": "skip"}, "Unknown vote outcome 'skip'"),
        ({"token": token, "outcome": "a", "reasons": ["nice"]}, "Unknown reason 'nice'"),
        ({"token": token}, "outcome: Field required"),
        ({"token": token, "outcome": "a", "voter": "me"}, "Extra inputs"),
    ):
        status, answer = voter.post("vote", **body)
        assert status == 400 and said in answer["message"]
    assert voter.http.post("/api/vote", content=b"x" * 300_000).status_code == 413
    assert voter.http.post("/gradio_api/upload", content=b"x").status_code == 404
    assert count(small) == 0


def test_every_answer_has_a_policy_and_none_is_kept(small: Small) -> None:
    voter = small.voter()
    for path in ("/api/arena", "/api/me", "/api/board", "/nothing"):
        headers = voter.http.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"] and "'unsafe-eval'" not in str(headers)
        assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"


def test_a_personal_board_after_thirty_votes(small: Small) -> None:
    """Only revealed votes are in it: 29 are not enough. Each battle gives both models one; wins equal losses."""
    voter = small.voter()
    for _ in range(29):
        voter.vote("a", reveal=True)
    voter.vote("a")
    me = voter.http.get("/api/me").json()
    assert (me["votes"], me["revealed_votes"], me["needed"], me["board"]) == (30, 29, 1, None)
    voter.vote("tie", reveal=True)
    board = voter.http.get("/api/me").json()["board"]
    assert sum(line["battles"] for line in board) == 60
    assert sum(line["wins"] for line in board) == sum(line["losses"] for line in board) == 29
    assert sum(line["ties"] for line in board) == 2
    assert [line["score"] for line in board] == sorted((line["score"] for line in board), reverse=True)


def test_a_voter_can_be_forgotten(small: Small) -> None:
    """Votes, battles and events go; the log keeps how many; others' votes stay."""
    voter, other = small.voter(), small.voter()
    for _ in range(3):
        voter.vote(reveal=True)
    other.vote()
    small.arena.board.refresh()
    assert voter.post("me/delete")[1] == {"ok": True, "votes": 3, "battles": 3, "prompts": 0}
    assert (count(small), count(small, battles)) == (1, 1)
    assert "palate_voter" not in voter.http.cookies
    with small.arena.engine.connect() as connection:
        kinds = list(connection.scalars(select(events.c.kind).order_by(events.c.id)))
    assert kinds == ["import", "vote", "erase"]
    small.arena.board.refresh()
    small.arena.board.compute()
    assert small.arena.board.answer()["votes"] == 1


def test_consent_is_asked_for_and_a_new_text_asks_again(small: Small) -> None:
    from apps.arena.voting.consent import change

    voter = small.voter()
    small.arena.writer.run(lambda connection: change(connection, "Votes are public.", small.clock()))
    small.arena.board.refresh()
    status, said = voter.post("battle")
    assert status == 403 and said["error"] == "consent"
    version = voter.http.get("/api/consent").json()["version"]
    assert voter.post("consent", version="0" * 32)[0] == 409
    assert voter.post("consent", version=version)[0] == 200
    voter.battle()
    small.arena.writer.run(lambda connection: change(connection, "Votes are published.", small.clock()))
    small.arena.board.refresh()
    assert voter.post("battle")[0] == 403


def test_the_board_of_a_category_and_with_the_side_held_equal(small: Small) -> None:
    """Asked for, it is computed beside the board of all votes, and equals the one of those votes alone."""
    from apps.arena.board import Choice
    from apps.arena.ratings.board import board

    voters, shown = [small.voter() for _ in range(4)], {"even": 0, "odd": 0}
    for number in range(40):
        shown[voters[number % 4].vote("aabt"[number // 4 % 4].replace("t", "tie"))["category"]] += 1
    keeper, asking = small.arena.board, voters[0].http
    keeper.refresh()
    keeper.compute()
    assert asking.get("/api/arena").json()["boards"] == {"categories": ["even", "odd"], "controls": ["side"]}
    for category in shown:
        keeper.compute(Choice(category, "side"))
        found = asking.get("/api/board", params={"category": category, "control": "side"}).json()
        assert found["votes"] == shown[category] and found["board"]["settings"]["control"] == ["side"]
    with small.arena.engine.connect() as connection:
        votes = read_ledger(connection).table()
    odd = votes.take(votes.category == votes.categories.index("odd"))
    alone = board(odd, bootstraps=20, control=["side"], categories=False).as_dict()
    assert alone["overall"]["rows"] == found["board"]["overall"]["rows"]
    for wrong in ({"category": "prime"}, {"control": "beauty"}):
        answer = asking.get("/api/board", params=wrong)
        assert answer.status_code == 400 and answer.json()["error"] == "invalid"


def test_a_board_first_asked_for_is_being_computed(small: Small) -> None:
    voter = small.voter()
    voter.vote()
    small.arena.board.close()  # nobody computes
    small.arena.board.refresh()
    answer = voter.http.get("/api/board", params={"control": "side"}).json()
    assert answer == {"computed": None, "votes": 0, "board": {}}

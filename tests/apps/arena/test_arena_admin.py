"""The owner's side: who gets in, what they see, and that whatever they do can be undone."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from apps.arena import admin, serve
from apps.arena.store import schema
from apps.arena.web.app import create_app
from palate.errors import UserError
from tests.apps.arena.small import PLAIN, Small, Voter, answer_pack, image_pack, small_arena

PASSWORD = "correct horse battery"
PATHS = ("overview", "votes", "voters", "exclusions", "consent", "export")


def owner(small: Small, address: str = "127.0.0.1", everywhere: bool = False, **headers: str) -> Voter:
    """Somebody at an address who speaks to the admin's side."""
    app = create_app(small.arena, ui=False, admin_everywhere=everywhere)
    return Voter(TestClient(app, headers=headers, client=(address, 1)), small.clock)


def login(who: Voter, password: str = PASSWORD) -> int:
    return who.http.post("/admin/api/login", json={"password": password}).status_code


@pytest.fixture
def locked(small: Small) -> Small:
    """An arena with a password."""
    hashed = admin.hash_password(PASSWORD)
    small.arena.writer.run(lambda connection: admin.set_password(connection, hashed))
    return small


def test_nothing_without_the_password(locked: Small) -> None:
    who = owner(locked)
    for path in PATHS:
        assert who.http.get(f"/admin/api/{path}").status_code == 401
    for path, body in (
        ("exclude", {"what": "voter", "target": "x"}),
        ("include", {"id": 1}),
        ("consent", {"text": "x"}),
    ):
        assert who.http.post(f"/admin/api/{path}", json=body).status_code == 401
    assert login(who, "wrong password") == 401
    assert login(who) == 200
    assert all(who.http.get(f"/admin/api/{path}").status_code == 200 for path in PATHS)
    who.http.post("/admin/api/logout")
    assert who.http.get("/admin/api/overview").status_code == 401


def test_the_session_ends_with_time_and_with_the_password(locked: Small) -> None:
    who = owner(locked)
    login(who)
    locked.clock.pass_seconds(8 * 3600)
    assert who.http.get("/admin/api/overview").status_code == 401
    login(who)
    hashed = admin.hash_password("another password")
    locked.arena.writer.run(lambda connection: admin.set_password(connection, hashed))
    assert who.http.get("/admin/api/overview").status_code == 401


def test_wrong_passwords_are_counted(locked: Small) -> None:
    """After five wrong ones even the right one waits, for a quarter of an hour."""
    who = owner(locked)
    assert [login(who, "wrong password") for _ in range(5)] == [401] * 5
    assert login(who) == 429
    locked.clock.pass_seconds(15 * 60)
    assert login(who) == 200


@pytest.mark.parametrize(
    ("address", "headers", "everywhere", "status"),
    [
        ("127.0.0.1", {}, False, 401),
        ("::1", {}, False, 401),
        ("10.0.0.9", {}, False, 404),
        ("127.0.0.1", {"x-forwarded-for": "1.2.3.4"}, False, 404),
        ("127.0.0.1", {"forwarded": "for=1.2.3.4"}, False, 404),
        ("10.0.0.9", {}, True, 401),
    ],
)
def test_beyond_this_machine_there_is_no_admin_page(
    locked: Small, address: str, headers: dict[str, str], everywhere: bool, status: int
) -> None:
    """Nor behind a proxy on this machine that nobody declared."""
    who = owner(locked, address, everywhere, **headers)
    assert who.http.get("/admin/api/overview").status_code == status
    assert who.http.post("/admin/api/login", json={"password": "wrong password"}).status_code == status


def test_the_password_is_hashed_with_a_salt() -> None:
    one, two = admin.hash_password(PASSWORD), admin.hash_password(PASSWORD)
    assert one != two and PASSWORD not in one
    assert admin.matches(PASSWORD, one) and not admin.matches(PASSWORD + "x", two)
    with pytest.raises(UserError, match="at least 10 characters; got 5"):
        admin.hash_password("short")


def test_the_owner_knows_who_made_what(locked: Small) -> None:
    """Whoever has logged in votes as one who knows: their later battles count as of known identity."""
    who = owner(locked)
    login(who)
    who.vote()
    with locked.arena.engine.connect() as connection:
        assert connection.execute(select(schema.battles.c.known)).scalars().all() == [True]


def test_what_the_owner_sees(locked: Small) -> None:
    voter, who = locked.voter(), owner(locked)
    battle = voter.vote("b")
    skipped = voter.battle()
    voter.post("skip", token=skipped["token"])
    login(who)
    seen: dict[str, Any] = {path: who.http.get(f"/admin/api/{path}").json() for path in PATHS[:4]}
    overview = seen["overview"]
    assert (overview["votes"], overview["battles"], overview["skipped"], overview["prompts"]) == (1, 2, 1, 6)
    assert [(m["name"], m["outputs"], m["retired"]) for m in overview["models"]] == [
        ("anchor", 12, False),
        ("bravo", 12, False),
        ("coral", 12, False),
    ]
    [vote] = seen["votes"]
    assert vote["battle"] == battle["token"][:32] and vote["outcome"] == "b" and vote["prompt"] == battle["prompt"]
    busiest = seen["voters"][0]
    assert (busiest["voter"], busiest["votes"], busiest["flags"]) == (vote["voter"], 1, [])
    assert who.http.get("/admin/api/votes", params={"before": vote["at"]}).json() == []
    assert len(who.http.get("/admin/api/votes", params={"voter": vote["voter"]}).json()) == 1
    with zipfile.ZipFile(io.BytesIO(who.http.get("/admin/api/export").content)) as archive:
        assert b'"outcome": "b"' in archive.read("votes.jsonl") and vote["voter"].encode() not in archive.read(
            "votes.jsonl"
        )


@pytest.mark.parametrize("what", ["voter", "battle", "prompt"])
def test_exclusions_are_reversible_and_logged(locked: Small, what: str) -> None:
    voter, who, board = locked.voter(), owner(locked), locked.arena.board
    voter.vote()
    login(who)
    [vote] = who.http.get("/admin/api/votes").json()
    target = {"voter": vote["voter"], "battle": vote["battle"], "prompt": vote["prompt_id"]}[what]

    def counted() -> int:
        board.refresh()
        board.compute()
        return board.answer()["votes"]

    assert counted() == 1
    wish = {"what": what, "target": target, "reason": "testing"}
    number = who.http.post("/admin/api/exclude", json=wish).json()["id"]
    assert who.http.post("/admin/api/exclude", json=wish).json()["id"] == number
    assert counted() == 0
    if what == "prompt":
        assert vote["prompt_id"] not in {p.text for p in locked.arena.catalog.prompts.values()}
        assert len(locked.arena.catalog.prompts) == 5
    assert who.http.post("/admin/api/include", json={"id": number}).status_code == 200
    assert counted() == 1
    [exclusion] = who.http.get("/admin/api/exclusions").json()
    assert exclusion["reason"] == "testing" and exclusion["lifted"] is not None
    with locked.arena.engine.connect() as connection:
        kinds = list(connection.scalars(select(schema.events.c.kind).order_by(schema.events.c.id)))
    assert kinds == ["import", "vote", "login", "exclude", "include"]
    for body, status in (({"what": "model", "target": "x"}, 400), ({"what": "voter", "target": "x"}, 404)):
        assert who.http.post("/admin/api/exclude", json=body).status_code == status


def test_a_retired_model_is_shown_no_more(locked: Small) -> None:
    who = owner(locked)
    login(who)
    assert who.http.post("/admin/api/retire", json={"model": "bravo", "retired": True}).status_code == 200
    assert locked.arena.catalog.names == ("anchor", "coral")
    assert who.http.post("/admin/api/retire", json={"model": "bravo", "retired": False}).status_code == 200
    assert locked.arena.catalog.names == ("anchor", "bravo", "coral")
    assert who.http.post("/admin/api/retire", json={"model": "none", "retired": True}).status_code == 404


def test_the_consent_text_can_be_set(locked: Small) -> None:
    who = owner(locked)
    login(who)
    assert who.http.post("/admin/api/consent", json={"text": "Votes are public."}).status_code == 200
    assert locked.voter().post("battle")[0] == 403
    who.http.post("/admin/api/consent", json={"text": ""})
    locked.voter().battle()


# --- the command -----------------------------------------------------------------------------------------------------


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, *words: str) -> Iterator[tuple[TestClient, dict[str, Any]]]:
    """Run `palate arena` up to where it would listen, and speak to what it serves."""
    found: list[tuple[TestClient, dict[str, Any]]] = []

    def run(app: Any, **how: Any) -> None:
        client = TestClient(app, client=("127.0.0.1", 1))
        assert client.post("/api/battle", json={}).status_code == 200
        found.append((client, how))

    monkeypatch.setattr("uvicorn.run", run)
    serve.main([*words, "--no-page"])
    yield found[0]


def write_pack(folder: Path) -> Path:
    from apps.arena.packs.format import write_head

    pack = image_pack(prompts=2, seeds=1)
    folder.mkdir(parents=True)
    for item in pack.items:
        for output in item.outputs:
            (folder / str(output.file)).write_bytes(pack.read(str(output.file)))
    write_head(folder, "written", pack.items)
    return folder


def test_palate_arena_serves_a_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says where; forwarded headers are not believed by the server; a password is printed, and another one kept."""
    pack, store = write_pack(tmp_path / "pack"), tmp_path / "arena"
    monkeypatch.delenv(serve.PASSWORD, raising=False)
    with served(monkeypatch, "--pack", str(pack), "--store", str(store)) as (_, how):
        assert how["host"] == "127.0.0.1" and how["proxy_headers"] is False
    said = capsys.readouterr().err
    assert "6 new outputs" in said and "password: " in said
    monkeypatch.setenv(serve.PASSWORD, PASSWORD)
    with served(monkeypatch, "--pack", str(pack), "--store", str(store), "--port", "7999") as (_, how):
        assert how["port"] == 7999
    said = capsys.readouterr().err
    assert "nothing new" in said and "password: " not in said and "http://localhost:7999/admin" in said
    with served(monkeypatch, "--store", str(store), "--host", "0.0.0.0"):
        assert "off beyond this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "There is nothing to judge"),
        (["--pack", "/nowhere"], "/nowhere is neither a folder nor a zip"),
        (["--settings", "/nowhere.yaml"], "No settings at /nowhere.yaml"),
        (["--host", "0.0.0.0", "--admin", "--pack", "PACK"], "--admin needs a password"),
    ],
)
def test_what_cannot_be_served_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.delenv(serve.PASSWORD, raising=False)
    words = [str(write_pack(tmp_path / "pack")) if word == "PACK" else word for word in words]
    with pytest.raises(UserError, match=said):
        serve.main([*words, "--store", str(tmp_path / "arena"), "--no-page"])


def test_settings_come_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "arena.yaml"
    path.write_text("title: Which cat?\nlimits: {votes_per_day: 7}\ntrusted_proxies: [10.0.0.0/8]\n")
    settings = serve.load_settings(path)
    assert (settings.title, settings.limits.votes_per_day, settings.limits.logins) == ("Which cat?", 7, 5)
    path.write_text("limits: {votes_per_dya: 7}\n")
    with pytest.raises(UserError, match=r"votes_per_dya.*did you mean 'limits\.votes_per_day'"):
        serve.load_settings(path)


def test_the_password_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["one password", "another password", PASSWORD, PASSWORD])
    monkeypatch.setattr("getpass.getpass", lambda _: next(typed))
    with pytest.raises(UserError, match="two passwords differ"):
        serve.main(["--store", str(tmp_path), "--set-password"])
    serve.main(["--store", str(tmp_path), "--set-password"])
    with small_arena(tmp_path, PLAIN, packs=(answer_pack(1),)) as small:
        assert login(owner(small)) == 200

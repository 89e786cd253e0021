"""Tokens, addresses, limits and checks: what keeps votes honest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from apps.arena.errors import Refused
from apps.arena.settings import ArenaSettings, Checks, Limits
from apps.arena.store import schema
from apps.arena.store.database import FILE
from apps.arena.voting.limits import DAY
from apps.arena.voting.quality import Judged, reasons_to_flag
from apps.arena.voting.tokens import Tokens, load_secret
from apps.arena.voting.visitors import client_address, hash_network, is_loopback, network_of
from palate.errors import UserError
from tests.apps.arena.small import OPEN, PLAIN, START, Small, image_pack, small_arena

MINUTE = 60


def test_forged_and_changed_tokens_are_refused(small: Small) -> None:
    """Every single changed character, another key, another purpose, and no token at all."""
    voter = small.voter()
    battle = voter.battle()
    token = battle["token"]
    others = Tokens("0" * 64)
    forged = [token[:k] + ("A" if token[k] != "A" else "B") + token[k + 1 :] for k in range(0, len(token), 7)]
    forged += ["", "x", token + "x", token.split(".")[0], battle["a"]["url"].removeprefix("/media/")]
    forged.append(others.battle("0" * 32, "0" * 32, 10**15))
    for bad in forged:
        status, said = voter.post("vote", token=bad, outcome="a")
        assert (status, said["error"]) == (403, "forged"), bad
    assert voter.http.get("/media/" + token).status_code == 403


def test_a_token_is_of_no_use_to_another_voter(small: Small) -> None:
    """Cross-battle and stolen tokens: the holder's hash is in the token, and the battle's row names the voter."""
    voter, thief = small.voter(), small.voter()
    mine, theirs = voter.battle()["token"], thief.battle()["token"]
    for path, body in (("vote", {"outcome": "a"}), ("skip", {}), ("undo", {}), ("reveal", {})):
        status, said = thief.post(path, token=mine, **body)
        assert (status, said["error"]) == (403, "forged")
    battle, rest = mine.split("~", 1)[0], theirs.split("~", 1)[1]
    assert voter.post("vote", token=f"{battle}~{rest}", outcome="a")[0] == 403


def test_an_expired_token_is_refused(small: Small) -> None:
    voter = small.voter()
    battle = voter.battle()
    small.clock.pass_seconds(30 * MINUTE - 1)
    assert voter.http.get(battle["a"]["url"]).status_code == 200
    small.clock.pass_seconds(1)
    status, said = voter.post("vote", token=battle["token"], outcome="a")
    assert (status, said["error"]) == (410, "expired")
    assert voter.http.get(battle["a"]["url"]).status_code == 410


def test_a_replayed_vote_changes_nothing(small: Small) -> None:
    """After the reveal, a repeat gets the old receipt and another outcome is refused, also with a stolen cookie."""
    voter = small.voter()
    token = voter.battle()["token"]
    receipt = voter.post("vote", token=token, outcome="b")[1]
    voter.post("reveal", token=token)
    assert voter.post("vote", token=token, outcome="b")[1] == receipt
    assert voter.post("vote", token=token, outcome="a")[0] == 409


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    key = load_secret(tmp_path)
    assert load_secret(tmp_path) == key and len(key) == 64
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_forged_cookie_is_a_new_voter(small: Small) -> None:
    voter = small.voter()
    voter.http.cookies.set("palate_voter", "0" * 32 + ".forged")
    answer = voter.http.get("/api/me")
    assert "palate_voter=" in answer.headers["set-cookie"]
    assert "HttpOnly" in answer.headers["set-cookie"] and "SameSite=lax" in answer.headers["set-cookie"]


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "client"),
    [
        ("9.9.9.9", "1.2.3.4", [], "9.9.9.9"),
        ("9.9.9.9", "1.2.3.4", ["10.0.0.0/8"], "9.9.9.9"),
        ("10.0.0.1", "1.2.3.4", ["10.0.0.0/8"], "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", ["10.0.0.0/8"], "1.2.3.4"),
        ("10.0.0.1", "", ["10.0.0.0/8"], ""),
        ("10.0.0.1", "nonsense", ["10.0.0.0/8"], ""),
        ("10.0.0.1", "10.0.0.3", ["10.0.0.0/8"], "10.0.0.3"),
        ("::1", "2001:db8::7", ["::1"], "2001:db8::7"),
        (None, "1.2.3.4", ["10.0.0.0/8"], ""),
    ],
)
def test_forwarded_addresses_count_only_behind_trusted_proxies(
    peer: str | None, forwarded: str, trusted: list[str], client: str
) -> None:
    assert client_address(peer, {"x-forwarded-for": forwarded}, trusted) == client


@given(st.lists(st.ip_addresses().map(str), max_size=4))
def test_what_a_client_writes_never_moves_its_address(written: list[str]) -> None:
    """Whatever stands left of what the trusted proxy appended is ignored."""
    header = ", ".join([*written, "1.2.3.4"])
    assert client_address("10.0.0.1", {"x-forwarded-for": header}, ["10.0.0.1"]) == "1.2.3.4"


def test_networks_and_loopback() -> None:
    assert network_of("1.2.3.4") == network_of("::ffff:1.2.3.99") == "1.2.3.0/24"
    assert network_of("2001:db8:1:2::5") == "2001:db8:1::/48" and network_of("testclient") == ""
    assert is_loopback("127.0.0.5") and is_loopback("::ffff:127.0.0.1") and not is_loopback("10.0.0.1")


def test_hashes_of_addresses_change_daily_and_are_erased(tmp_path: Path) -> None:
    """The stored hash is not the address's plain hash, differs from day to day, and is gone with its salt after 7 days."""
    with small_arena(tmp_path) as small:
        arena, network = small.arena, network_of("1.2.3.4")

        def hashed() -> str:
            from apps.arena.voting.visitors import salt_of_today

            salt = arena.writer.run(lambda c: salt_of_today(c, small.clock()))
            return hash_network(arena.tokens, network, salt)

        today = hashed()
        assert today == hashed() and hash_network(arena.tokens, network, "") != today
        voter = small.voter()
        voter.battle()
        arena.writer.run(lambda c: c.execute(update(schema.battles).values(network=today)))
        small.clock.now += DAY
        assert hashed() != today
        small.clock.now += 6 * DAY
        arena.housekeep()
        with arena.engine.connect() as connection:
            assert connection.scalars(select(schema.battles.c.network)).all() == [today]
        small.clock.now += 2 * DAY
        arena.housekeep()
        with arena.engine.connect() as connection:
            assert connection.scalars(select(schema.battles.c.network)).all() == [None]
            assert START // DAY not in set(connection.scalars(select(schema.salts.c.day)))


def test_no_address_is_in_the_database(tmp_path: Path) -> None:
    with small_arena(tmp_path, trusted_proxies=["10.0.0.0/8"]) as small:
        voter = small.voter(**{"x-forwarded-for": "203.0.113.77"})
        voter.vote()
    content = b"".join(path.read_bytes() for path in tmp_path.glob(f"{FILE}*"))
    assert b"203.0.113" not in content


# --- limits ----------------------------------------------------------------------------------------------------------


def limited(**limits: int) -> ArenaSettings:
    return ArenaSettings(limits=Limits(**{**vars(OPEN), **limits}), checks=Checks(0.0, 0.0), bootstraps=0)


def refusal(voter: Any) -> str:
    status, said = voter.post("battle")
    assert status in (409, 429), said
    return said["message"]


def test_battles_in_a_minute(tmp_path: Path) -> None:
    with small_arena(tmp_path, limited(battles_per_minute=2)) as small:
        voter = small.voter()
        voter.battle(), voter.battle()
        assert refusal(voter) == "Too many battles asked for: at most 2. Come back in 60 s."
        assert voter.http.post("/api/battle", json={}).headers["retry-after"] == "60"
        small.voter().battle()
        small.clock.pass_seconds(MINUTE)
        voter.battle()


def test_votes_in_a_day_and_undone_ones_do_not_count(tmp_path: Path) -> None:
    with small_arena(tmp_path, limited(votes_per_day=2)) as small:
        voter = small.voter()
        battle = voter.vote()
        open_ = voter.battle()
        assert "at most 2" in refusal(voter)  # a battle in hand can become a vote
        voter.post("skip", token=open_["token"])
        voter.vote()
        assert "at most 2" in refusal(voter)
        assert voter.post("undo", token=battle["token"])[0] == 200
        small.clock.pass_seconds(31 * MINUTE)
        voter.vote()
        small.clock.pass_seconds(24 * 60 * MINUTE)
        voter.vote()


def test_votes_of_one_voter_on_one_model(tmp_path: Path) -> None:
    """With two models and at most 2 a day for each, a voter gets 2 battles; another voter gets theirs."""
    pack = image_pack(models=("anchor", "bravo"))
    with small_arena(tmp_path, limited(votes_per_model_per_day=2), packs=(pack,)) as small:
        voter = small.voter()
        voter.vote(), voter.vote()
        assert "today" in refusal(voter)
        small.voter().vote()


def test_votes_on_one_model_by_everybody(tmp_path: Path) -> None:
    with small_arena(tmp_path, limited(model_votes_per_day=1)) as small:
        small.voter().vote()
        small.arena.board.refresh()
        assert "today" in refusal(small.voter())  # of three models only one is left
        small.clock.pass_seconds(24 * 60 * MINUTE)
        small.arena.board.refresh()
        small.voter().vote()


def test_battles_on_one_prompt(tmp_path: Path) -> None:
    with small_arena(tmp_path, limited(battles_per_prompt=2), packs=(image_pack(prompts=1),)) as small:
        voter = small.voter()
        voter.vote(), voter.vote()
        assert refusal(voter) == "You have judged all that there is for you. Thank you!"


def test_a_network_is_limited_however_many_cookies_it_has(tmp_path: Path) -> None:
    """A /24 shares its limit; the header of somebody who is no proxy changes nothing."""
    settings = limited(network_battles_per_minute=3, network_voters_per_day=2)
    with small_arena(tmp_path, settings, trusted_proxies=["10.0.0.1"]) as small:
        from starlette.testclient import TestClient

        from apps.arena.web.app import create_app
        from tests.apps.arena.small import Voter

        app = create_app(small.arena, ui=False)

        def voter(address: str, peer: str = "10.0.0.1") -> Voter:
            client = TestClient(app, headers={"x-forwarded-for": address}, client=(peer, 1))
            return Voter(client, small.clock)

        first = voter("1.2.3.4")
        first.battle(), first.battle()
        voter("1.2.3.5").battle()
        assert "from your network" in refusal(voter("1.2.3.6"))
        small.clock.pass_seconds(MINUTE)
        assert "new voters from your network" in refusal(voter("1.2.3.7"))
        first.battle()
        voter("1.2.4.4").battle()
        liar = voter("7.7.7.7", peer="9.9.9.9")
        for _ in range(3):
            liar.battle()
        assert "from your network" in refusal(liar)


# --- checks of voters ------------------------------------------------------------------------------------------------


def test_gold_and_repeated_battles_come_and_do_not_count(tmp_path: Path) -> None:
    """With a quarter of either, 30 battles hold both; neither reaches the board; a gold battle has one model."""
    checks = Checks(gold_share=0.25, repeat_share=0.25, after=3)
    with small_arena(tmp_path, PLAIN, packs=(image_pack(prompts=40),), checks=checks) as small:
        voter = small.voter()
        kinds = [voter.vote("a", reveal=True)["kind"] for _ in range(30)]
        assert kinds.count("gold") >= 3 and kinds.count("repeat") >= 2 and kinds[:3] == ["plain"] * 3
        small.arena.board.refresh()
        small.arena.board.compute()
        assert small.arena.board.answer()["votes"] in (0, kinds.count("plain"))  # 0 where "a" missed the checks
        with small.arena.engine.connect() as connection:
            gold = connection.execute(select(schema.battles).where(schema.battles.c.kind == "gold")).first()
            again = connection.execute(select(schema.battles).where(schema.battles.c.kind == "repeat")).first()
            assert gold is not None and gold.model_a == gold.model_b and gold.better in ("a", "b")
            assert again is not None
            before = connection.execute(select(schema.battles).where(schema.battles.c.id == again.repeats)).one()
        assert {before.output_a, before.output_b} == {again.output_a, again.output_b}


def judged(outcomes: str, pause: int = 3000, better: str | None = None) -> list[Judged]:
    return [Judged(pause * k, {"a": "a", "b": "b", "t": "tie"}[c], better) for k, c in enumerate(outcomes)]


def test_who_is_set_apart() -> None:
    """By hand: 1 of 3 checks missed is a third, not more; 2 of 3 is. 20 of 20 on one side: 2 / 2^20 = 1.9e-6 is not yet
    below 1e-6; 21 of 21 is. A pause of 0.7 s is slow enough."""
    assert reasons_to_flag(judged("aab", better="a")) == []
    assert reasons_to_flag(judged("abb", better="a")) == ["missed 2 of 3 checks"]
    assert reasons_to_flag(judged("bb", better="a")) == []
    assert reasons_to_flag(judged("a" * 20)) == []
    assert reasons_to_flag(judged("a" * 21)) == ["chose one side 21 times of 21"]
    assert reasons_to_flag(judged("ab" * 10, pause=700)) == []
    assert reasons_to_flag(judged("ab" * 10, pause=699)) == ["median of 0.7 s between votes"]
    assert reasons_to_flag(judged("ab" * 9, pause=1)) == []


def test_a_voter_who_was_told_is_known_to_know(tmp_path: Path) -> None:
    """One prompt, one output each: after a reveal, any battle with one of its two outputs is of known identity."""
    with small_arena(tmp_path, packs=(image_pack(prompts=1, seeds=1),)) as small:
        voter = small.voter()
        voter.vote(reveal=True)
        voter.vote()
        with small.arena.engine.connect() as connection:
            assert list(connection.scalars(select(schema.battles.c.known).order_by(schema.battles.c.created))) == [
                False,
                True,
            ]


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="'1.2.3' is no address or network"):
        ArenaSettings(trusted_proxies=["1.2.3"])
    with pytest.raises(UserError, match="sum to at most"):
        ArenaSettings(checks=Checks(0.4, 0.4))


def test_tokens_of_one_purpose_are_none_of_another() -> None:
    tokens = Tokens("k")
    signed = tokens.sign("ticket", "abc", 5)
    assert tokens.read("ticket", signed, 2) == ["abc", "5"]
    for purpose, parts in (("media", 2), ("ticket", 3)):
        with pytest.raises(Refused, match="not made by this arena"):
            tokens.read(purpose, signed, parts)

"""The chat client against a real HTTP server of this file's own, on the loopback."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from palate.chats import data_url, read_reply
from palate.conversations import IMAGE, Message
from palate.endpoint import Chat, ChatClient, Pace, Reply, retry_after
from palate.errors import UserError
from palate.records import Media
from tests.chat_server import Server, completion, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with running() as state:
        yield state


def client(server: Server, **how: Any) -> ChatClient:
    how = {"sleep": lambda seconds: None, "workers": 1, **how}
    return ChatClient(server.url, "tiny", **how)


def picture(side: int = 3, colour: str = "red") -> Media:
    return Media.image(Image.new("RGB", (side, side), colour))


# --- what is sent and what comes back --------------------------------------------------------------------------------


def test_replies_come_in_order_of_the_questions(server: Server) -> None:
    replies = client(server, workers=4).ask([Chat.about(f"{n}") for n in range(20)])
    assert [reply.text for reply in replies] == [f"re: {n}" for n in range(20)]


def test_the_body_is_openais(server: Server) -> None:
    image = picture()
    messages = (
        Message("system", ("Be brief.",)),
        Message("user", ("A:", IMAGE, "B:", IMAGE, "Which?")),
    )
    client(server).ask(
        [Chat(messages, [image, image], temperature=0.5, max_tokens=9, seed=3, top_logprobs=2, extra={"top_p": 0.9})]
    )
    place = {"type": "image_url", "image_url": {"url": data_url(image)}}
    text = lambda words: {"type": "text", "text": words}
    assert server.seen == [
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [text("A:"), place, text("B:"), place, text("Which?")]},
            ],
            "temperature": 0.5,
            "max_tokens": 9,
            "seed": 3,
            "logprobs": True,
            "top_logprobs": 2,
            "top_p": 0.9,
        }
    ]


def test_images_travel_as_they_are_or_as_png(tmp_path: Path) -> None:
    """A JPEG keeps its bytes; a BMP, which few endpoints read, becomes the same pixels as PNG."""
    buffers = {kind: io.BytesIO() for kind in ("JPEG", "WEBP", "BMP")}
    for kind, buffer in buffers.items():
        Image.new("RGB", (3, 2), "blue").save(buffer, kind)
    for kind in ("JPEG", "WEBP"):
        head, _, body = data_url(Media(data=buffers[kind].getvalue())).partition(",")
        assert head == f"data:image/{kind.lower()};base64" and base64.b64decode(body) == buffers[kind].getvalue()
    path = tmp_path / "a.bmp"
    path.write_bytes(buffers["BMP"].getvalue())
    head, _, body = data_url(Media.image(path)).partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(body))).getpixel((0, 0)) == (0, 0, 255)


def test_log_probabilities(server: Server) -> None:
    listed = [
        {
            "token": "Yes",
            "logprob": -0.1,
            "top_logprobs": [{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": -2}],
        }
    ]
    server.script = [(200, {}, completion("Yes", logprobs={"content": listed}))]
    (reply,) = client(server).ask([Chat.about("Is it?", top_logprobs=2)])
    assert [(t.text, t.logprob, t.top) for t in reply.tokens] == [("Yes", -0.1, {"Yes": -0.1, "No": -2.0})]


def test_the_key_goes_out_and_nowhere_else(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOME_KEY", "sesame-17")
    server.script = [(500, {}, b"no"), (400, {}, b'{"error": {"message": "wrong"}}')]
    asked = client(server, key_env="SOME_KEY", cache=tmp_path)
    replies = asked.ask([Chat.about("a"), Chat.about("b")])
    assert {h["Authorization"] for h in server.headers} == {"Bearer sesame-17"}
    kept = "".join(p.read_text() for p in tmp_path.rglob("*.json"))
    assert kept and "sesame" not in kept + repr(replies) + repr(vars(asked))


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_too_many_requests_then_success(server: Server) -> None:
    """Retry-After: 7 holds all for 7 seconds; the first backoff is 0.5 to 1.5 seconds."""
    waits: list[float] = []
    server.script = [(429, {"Retry-After": "7"}, b"slow down")]
    replies = client(server, sleep=waits.append).ask([Chat.about("a")])
    assert [r.text for r in replies] == ["re: a"] and len(server.seen) == 2
    assert 0.5 <= waits[0] <= 1.5 and 6 < waits[1] <= 7


def test_server_errors_are_tried_again_with_growing_waits(server: Server) -> None:
    waits: list[float] = []
    server.script = [(500, {}, b""), (503, {}, b""), (502, {}, b"")]
    (reply,) = client(server, sleep=waits.append).ask([Chat.about("a")])
    assert reply.ok and len(server.seen) == 4
    assert all(base / 2 <= wait <= base * 1.5 for base, wait in zip((1, 2, 4), waits, strict=True))


def test_a_server_that_never_recovers_is_a_failure_and_the_others_are_answered(server: Server) -> None:
    server.script = [(500, {}, b'{"error": {"message": "out of memory"}}')] * 3
    first, second = client(server, retries=2).ask([Chat.about("a"), Chat.about("b")])
    assert first.failure == "status 500: out of memory (given up after 3 attempts)"
    assert second.text == "re: b"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"<html>gateway</html>", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_reply_that_is_no_json(server: Server, reply: bytes, said: str) -> None:
    server.script = [(200, {}, reply)] * 2
    (answer,) = client(server, retries=1).ask([Chat.about("a")])
    assert said in answer.failure and len(server.seen) == 2


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": 3}]}, {"choices": {"0": 1}}],
)
def test_json_that_is_no_completion(data: Any) -> None:
    assert "no chat completion" in read_reply(data).failure


def test_an_answer_without_a_text_says_why(server: Server) -> None:
    server.script = [(200, {}, completion(None, finish_reason="content_filter"))]
    (reply,) = client(server).ask([Chat.about("a")])
    assert reply == Reply(failure="the reply has no text: content_filter", finish="content_filter")


def test_a_wrong_request_is_not_repeated(server: Server) -> None:
    server.script = [(400, {}, b'{"error": {"message": "no such parameter"}}')]
    (reply,) = client(server).ask([Chat.about("a")])
    assert reply.failure == "status 400: no such parameter" and len(server.seen) == 1


def test_a_refused_key_is_not_tried_ten_thousand_times(server: Server) -> None:
    server.script = [(401, {}, b'{"error": {"message": "bad key"}}')]
    replies = client(server).ask([Chat.about(f"{n}") for n in range(50)])
    assert len(server.seen) == 1
    assert all("bad key" in reply.failure for reply in replies)


def test_a_timeout_is_a_failure(server: Server) -> None:
    server.hang = threading.Event()
    (reply,) = client(server, timeout=0.05, retries=1).ask([Chat.about("a")])
    assert reply.failure == "no answer within 0.05 s (given up after 2 attempts)"


def test_nobody_listens() -> None:
    with running() as gone:
        url = gone.url
    (reply,) = ChatClient(url, "tiny", retries=0, sleep=lambda s: None).ask([Chat.about("a")])
    assert "the connection failed" in reply.failure


def test_a_pause_of_an_hour_is_a_failure(server: Server) -> None:
    server.script = [(429, {"Retry-After": "3600"}, b"quota")]
    (reply,) = client(server).ask([Chat.about("a")])
    assert "pause of 3600 s" in reply.failure and len(server.seen) == 1


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("12") == 12 and retry_after("-3") == 0
    assert 95 < retry_after(formatdate(time.time() + 100, usegmt=True)) < 101
    assert retry_after("soon") == 0 and retry_after("") == 0 and retry_after("nan") == 0


def test_an_unreadable_image_fails_alone(server: Server, tmp_path: Path) -> None:
    missing = Media.image(tmp_path / "none.png")
    first, second = client(server).ask([Chat.about("a", [missing]), Chat.about("b", [picture()])])
    assert "none.png" in first.failure and second.text == "re: b"
    assert "not fetched" in client(server).ask([Chat.about("a", [Media(path="https://x.org/a.png")])])[0].failure


def test_leaving_the_loop_stops_the_rest(server: Server) -> None:
    for _ in client(server).stream([Chat.about(f"{n}") for n in range(200)]):
        break
    assert len(server.seen) < 10


# --- pace, cap, cache ------------------------------------------------------------------------------------------------


def test_pace_by_hand() -> None:
    """30 a minute: the second waits 2 s, the third 4 s; a hold of 10 s at time 0 lets the fourth start at 10 s."""
    waits: list[float] = []
    pace = Pace(30, sleep=waits.append, clock=lambda: 0.0)
    for _ in range(3):
        pace.wait()
    pace.hold(10)
    pace.wait()
    assert waits == [2, 4, 10]


def test_requests_per_minute(server: Server) -> None:
    waits: list[float] = []
    client(server, requests_per_minute=60, sleep=waits.append).ask([Chat.about(f"{n}") for n in range(3)])
    assert len(waits) == 2 and 0 < waits[0] <= 1 < waits[1] <= 2


def test_the_token_cap_keeps_what_was_answered(server: Server) -> None:
    """15 tokens a reply: after two there are 30, the cap."""
    asked = client(server, max_tokens=30)
    replies = asked.ask([Chat.about(f"{n}") for n in range(5)])
    assert [r.ok for r in replies] == [True, True, False, False, False]
    assert replies[2].failure == "The cap of 30 tokens is reached" and len(server.seen) == 2


def test_the_cap_holds_with_many_workers(server: Server) -> None:
    """At 15 tokens a reply 20 are paid for by 300, however many are asked at a time."""
    replies = client(server, max_tokens=300, workers=8).ask([Chat.about(f"{n}") for n in range(60)])
    assert 1 <= sum(r.ok for r in replies) == len(server.seen) <= 20


def test_the_price_cap(server: Server) -> None:
    """10 prompt tokens at 1 and 5 completion tokens at 4 a million: 30e-6 a reply; 50e-6 is passed by the second."""
    asked = client(server, prices=(1.0, 4.0), max_cost=50e-6)
    replies = asked.ask([Chat.about(f"{n}") for n in range(5)])
    assert [r.ok for r in replies] == [True, True, False, False, False]
    assert asked.spent.cost == pytest.approx(60e-6)
    assert (asked.spent.requests, asked.spent.prompt_tokens, asked.spent.completion_tokens) == (2, 20, 10)


def test_a_cap_that_cannot_be_kept_stops(server: Server) -> None:
    bare = json.dumps({"choices": [{"message": {"content": "hm"}}]}).encode()
    server.script = [(200, {}, bare)]
    first, second = client(server, max_tokens=100).ask([Chat.about("a"), Chat.about("b")])
    assert first.text == "hm" and "does not report" in second.failure


def test_a_kept_answer_needs_no_request(server: Server, tmp_path: Path) -> None:
    chats = [Chat.about("a", [picture()]), Chat.about("b")]
    before = client(server, cache=tmp_path).ask(chats)
    asked = client(server, cache=tmp_path, max_tokens=1)
    after = asked.ask(chats)
    assert len(server.seen) == 2 and asked.spent.requests == 0
    assert [r.text for r in after] == [r.text for r in before] and all(r.cached for r in after)


@pytest.mark.parametrize(
    "other",
    [
        Chat.about("a", [picture(colour="blue")]),
        Chat.about("b", [picture()]),
        Chat.about("a", [picture()], temperature=0.1),
        Chat.about("a", [picture()], seed=1),
        Chat.about("a", [picture()], system="You are."),
        Chat.about("a", [picture()], max_tokens=5),
        Chat.about("a", [picture()], top_logprobs=1),
        Chat.about("a", [picture()], extra={"top_p": 0.5}),
    ],
)
def test_whatever_is_sent_is_in_the_key(server: Server, tmp_path: Path, other: Chat) -> None:
    asked = client(server, cache=tmp_path)
    asked.ask([Chat.about("a", [picture()])])
    asked.ask([other])
    assert len(server.seen) == 2


def test_failures_are_not_kept_and_a_broken_file_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.script = [(400, {}, b"no")]
    asked = client(server, cache=tmp_path)
    assert not asked.ask([Chat.about("a")])[0].ok
    assert asked.ask([Chat.about("a")])[0].ok
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text(kept.read_text()[:20])
    assert asked.ask([Chat.about("a")])[0].text == "re: a" and len(server.seen) == 3


def test_a_cache_that_cannot_be_written_loses_no_answer(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not be kept"):
        (reply,) = client(server, cache=tmp_path / "file").ask([Chat.about("a")])
    assert reply.text == "re: a"


# --- what a caller can get wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"url": "localhost:8000"}, "address like"),
        ({"model": ""}, "name of a model"),
        ({"key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY holds no key"),
        ({"workers": 0}, "workers must be positive"),
        ({"requests_per_minute": -1}, "requests_per_minute must be positive"),
        ({"max_cost": 1.0}, "needs prices"),
    ],
)
def test_wrong_settings(how: dict[str, Any], said: str) -> None:
    how = dict(how)
    with pytest.raises(UserError, match=said):
        ChatClient(how.pop("url", "http://localhost/v1"), how.pop("model", "tiny"), **how)


def test_a_place_without_its_image() -> None:
    with pytest.raises(UserError, match="1 places, and 0 images"):
        Chat((Message.user("a", 1),))

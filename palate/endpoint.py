"""Many questions to one OpenAI-compatible chat endpoint: answers in order, failures as answers that say why.

    client = ChatClient("http://localhost:8000/v1", "Qwen/Qwen2.5-7B-Instruct", cache="runs/replies")
    chats = [Chat.about("What is in this image?", [Media.image("cat.png")], max_tokens=100)]
    for reply in client.ask(chats):
        print(reply.text if reply.ok else reply.failure)

Nothing is fetched: images go along as data URLs. Every answer is kept on disk under a hash of everything that was sent,
so that a run that stopped asks (and pays) only for what is missing.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.chats import Chat, Reply, Token, read_reply, request_body
from palate.errors import UserError
from palate.randomness import uniform

if TYPE_CHECKING:
    import httpx

__all__ = ["Chat", "ChatClient", "Pace", "Reply", "Spent", "Token"]

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # 529: overloaded, as some gateways say it
_HOPELESS = {401: "the key was refused", 402: "payment is required", 403: "access is refused", 404: "not found"}
_LONGEST_WAIT = 300.0  # seconds: a server that wants a longer pause is asked again another day


@dataclass
class Spent:
    """What the server reported so far, in this process. Cached answers cost nothing."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class ChatClient:
    """A chat endpoint with retries, a pace, a spend cap and a cache. It asks one batch at a time, by several workers.

    url: base address, up to and without /chat/completions.
    key_env: the environment variable that holds the key; None sends none. The key is never stored or printed.
    cache: folder of answers; None keeps none.
    retries: further attempts after a timeout, a broken connection, a reply that is no JSON, or status 408, 429, 5xx.
        The waits double from one second; Retry-After is honoured, by all workers, up to five minutes.
    requests_per_minute: how many requests may start in a minute, retries included.
    max_tokens: stop asking once the server has reported so many tokens (prompt and completion).
    prices, max_cost: price of a million prompt and completion tokens, and the sum at which to stop asking. Requests
        under way are expected to cost the mean so far, so a cap is passed by little: by what the first `workers`
        requests cost, and by what later ones cost above the mean.
    sleep: waits so many seconds; a test passes its own.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str | None = None,
        cache: str | Path | None = None,
        timeout: float = 120.0,
        retries: int = 5,
        workers: int = 8,
        requests_per_minute: float | None = None,
        max_tokens: int | None = None,
        prices: tuple[float, float] = (0.0, 0.0),
        max_cost: float | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"An endpoint is an address like http://localhost:8000/v1, not {url!r}.")
        if not model:
            raise UserError(f"The endpoint {url} needs the name of a model.")
        if key_env and not os.environ.get(key_env):
            raise UserError(f"The environment variable {key_env} holds no key. Export it, or name another one.")
        for name, value in (("timeout", timeout), ("workers", workers), ("requests_per_minute", requests_per_minute)):
            if value is not None and not value > 0:
                raise UserError(f"{name} must be positive, not {value}.")
        if max_cost is not None and not any(prices):
            raise UserError("A cap on the cost needs prices: those of a million prompt and completion tokens.")
        self.url, self.model, self.spent = url.rstrip("/"), model, Spent()
        self._key_env, self._cache, self._timeout = key_env, Path(cache) if cache else None, timeout
        self._retries, self._workers = retries, workers
        self._max_tokens, self._prices, self._max_cost = max_tokens, prices, max_cost
        self._stop, self._lock, self._closed, self._flying = threading.Event(), threading.Lock(), "", 0
        self._pace = Pace(requests_per_minute, sleep=sleep or self._stop.wait)

    def ask(self, chats: Sequence[Chat]) -> list[Reply]:
        """Return one reply for each chat, in order."""
        replies = dict(self.stream(chats))
        return [replies[number] for number in range(len(chats))]

    def stream(self, chats: Sequence[Chat]) -> Iterator[tuple[int, Reply]]:
        """Yield `(number of the chat, reply)` as they arrive. Leaving the loop early stops the rest."""
        import httpx

        headers = {"Authorization": f"Bearer {os.environ[self._key_env]}"} if self._key_env else {}
        self._stop.clear()
        with (
            httpx.Client(headers=headers, timeout=self._timeout) as http,
            ThreadPoolExecutor(self._workers, thread_name_prefix="chat") as pool,
        ):
            futures = {pool.submit(self._answer, http, chat): number for number, chat in enumerate(chats)}
            try:
                for future in as_completed(futures):
                    yield futures.pop(future), future.result()
            finally:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, http: httpx.Client, chat: Chat) -> Reply:
        try:
            body = json.dumps(request_body(chat, self.model), sort_keys=True)
        except UserError as error:  # an image that cannot be read
            return Reply(failure=str(error))
        digest = blake2b(f"{self.url}\n{body}".encode(), digest_size=20).hexdigest()
        path = self._cache / digest[:2] / f"{digest}.json" if self._cache else None
        if path and (kept := _kept(path)):
            return kept
        reply, data = self._request(http, body, digest)
        if path and reply.ok:
            _keep(path, data)
        return reply

    def _request(self, http: httpx.Client, body: str, digest: str) -> tuple[Reply, Any]:
        """Return the reply, and the JSON that it was read from, after as many attempts as are allowed."""
        reason = ""
        for attempt in range(self._retries + 1):
            if attempt:
                self._pace.sleep(2.0 ** min(attempt - 1, 6) * (0.5 + uniform(0, digest, attempt, "backoff")))
            self._pace.wait()
            with self._flight() as closed:
                if closed:
                    return Reply(failure=f"{closed} (after: {reason})" if reason else closed), None
                outcome = self._attempt(http, body)
            if not isinstance(outcome, str):
                return outcome
            reason = outcome
        return Reply(failure=f"{reason} (given up after {self._retries + 1} attempts)"), None

    def _attempt(self, http: httpx.Client, body: str) -> tuple[Reply, Any] | str:
        """Return the reply and its JSON, or why to try again."""
        import httpx

        try:
            response = http.post(
                f"{self.url}/chat/completions", content=body, headers={"Content-Type": "application/json"}
            )
        except httpx.TimeoutException:
            return f"no answer within {self._timeout:g} s"
        except httpx.HTTPError as error:
            return f"the connection failed: {error or type(error).__name__}"
        status = response.status_code
        if status == 200:
            try:
                data = response.json()
            except (ValueError, RecursionError):  # ValueError: also bytes that are no UTF-8
                return f"the reply is not JSON: {response.text[:80]!r}"
            self._count(data)
            return read_reply(data), data
        reason = f"status {status}: {_words(response)}"
        if status in _HOPELESS:
            with self._lock:
                self._closed = f"{self.url}: {_HOPELESS[status]} ({reason})"
        if status not in _AGAIN:
            return Reply(failure=reason), None
        pause = retry_after(response.headers.get("Retry-After", ""))
        if pause > _LONGEST_WAIT:
            return Reply(failure=f"{reason}; the server asks for a pause of {pause:.0f} s"), None
        self._pace.hold(pause)
        return reason

    def _count(self, data: Any) -> None:
        usage = data.get("usage") if isinstance(data, dict) else None
        usage = usage if isinstance(usage, dict) else {}
        counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
        known = [count if isinstance(count, int) and count >= 0 else 0 for count in counts]
        capped = self._max_tokens is not None or self._max_cost is not None
        with self._lock:
            self.spent.requests += 1
            self.spent.prompt_tokens += known[0]
            self.spent.completion_tokens += known[1]
            self.spent.cost += sum(n * price / 1e6 for n, price in zip(known, self._prices, strict=True))
            if capped and not any(known):
                self._closed = "The server does not report how many tokens it used, so the spend cap cannot be kept"

    @contextmanager
    def _flight(self) -> Iterator[str]:
        """Count a request as under way, and give "", or the reason why it must not be sent."""
        with self._lock:
            closed = self._reason_to_stop()
            self._flying += not closed
        try:
            yield closed
        finally:
            with self._lock:
                self._flying -= not closed

    def _reason_to_stop(self) -> str:
        spent = self.spent
        share = 1 + self._flying / spent.requests if spent.requests else 1.0  # those under way cost the mean so far
        if self._max_tokens is not None and share * (spent.prompt_tokens + spent.completion_tokens) >= self._max_tokens:
            return f"The cap of {self._max_tokens} tokens is reached"
        if self._max_cost is not None and share * spent.cost >= self._max_cost:
            return f"The spend cap of {self._max_cost:g} is reached"
        return self._closed or ("stopped" if self._stop.is_set() else "")


class Pace:
    """When the next request may start: so many a minute, and none while the server asked for a pause."""

    def __init__(
        self,
        per_minute: float | None,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next, self._lock, self._clock, self.sleep = -math.inf, threading.Lock(), clock, sleep

    def wait(self) -> None:
        """Take the next free moment, and wait for it."""
        with self._lock:
            now = self._clock()
            moment = max(now, self._next)
            self._next = moment + self._gap
        if moment > now:
            self.sleep(moment - now)

    def hold(self, seconds: float) -> None:
        """Let nothing start for so long."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


def retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks for, given as seconds or as a date; 0 where it says nothing."""
    try:
        seconds = float(value)
        return seconds if seconds > 0 else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _keep(path: Path, data: Any) -> None:
    part = path.with_suffix(f".{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(data), encoding="utf-8")
        part.replace(path)
    except OSError as error:  # the answer is paid for: it goes on to the caller all the same
        warnings.warn(f"An answer could not be kept in {path.parent}: {error}", stacklevel=2)


def _kept(path: Path) -> Reply | None:
    try:
        reply = read_reply(json.loads(path.read_text(encoding="utf-8")), cached=True)
    except (OSError, ValueError):
        return None
    return reply if reply.ok else None


def _words(response: httpx.Response) -> str:
    """Return what an error's body says, shortened: the message of OpenAI's form where it has one."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:200]
    except (ValueError, KeyError, TypeError, RecursionError):
        return " ".join(response.text.split())[:200] or response.reason_phrase

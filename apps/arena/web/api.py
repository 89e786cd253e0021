"""The arena over HTTP, JSON in and out. A page holds nothing but the battle's token; who votes is in an HttpOnly cookie.

    POST /api/battle   {category?}           -> Battle
    POST /api/battle   {prompt, image?}      -> 202 {ticket, position}, or Battle: live generation
    POST /api/battle   {ticket}              -> 202 {ticket, position} while it waits, then Battle
    POST /api/vote     {token, outcome: a|b|tie|both_bad, reasons?: [key]}  -> {receipt, outcome, reveal_after: seconds}
    POST /api/undo     {token}               -> {ok}          until the reveal, or reveal_after seconds after the vote
    POST /api/skip     {token}               -> {ok}          an event, not a vote
    POST /api/reveal   {token}               -> {a: {model, seed}, b: {model, seed}, outcome, kind, better}
    POST /api/upload   bytes of a picture    -> {image}       for a live question; PNG, JPEG or WebP
    GET  /api/arena                          -> {title, categories, kinds, live, consent, reasons, reveal_after, boards}
    GET  /api/board?category=&control=       -> {computed, votes, board}; computed: null until a board first asked for is
                                                there, in about a second; control: side, to hold the side equal
    GET  /api/me                             -> {votes, skipped, revealed_votes, needed, board}
    POST /api/me/delete                      -> {ok, votes, battles, prompts}; the cookie goes, too
    GET  /api/consent                        -> {text, version}; both null where nothing must be agreed to
    POST /api/consent  {version}             -> {ok}
    GET  /media/NAME                         -> PNG; equally many bytes, pixels and headers on both sides

Battle: {token, kind: image|text, prompt, category, question_image: {url} | null, a, b, reasons: [{key, label}], expires},
with a and b {url, width, height} or {markdown, html}. `kind` of a reveal is plain, live, gold (one side was a spoilt copy:
`better` names the whole one) or repeat (an earlier battle of this voter).

What is refused comes as {error, message, ...}; `error` is one of `apps.arena.errors.CODES`, which has the status. A vote
is on disk before its receipt is sent, and no model's name leaves the server before the vote of its battle is. Repeating
a request is safe: the same vote gets the same receipt, another outcome a 409.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from apps.arena.board import CONTROLS
from apps.arena.errors import Refused
from apps.arena.service import Arena
from apps.arena.voting.reasons import REASONS
from apps.arena.voting.visitors import COOKIE, COOKIE_SECONDS, Visitor, client_address, network_of, new_voter


class Body(BaseModel):
    """A request's JSON. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", str_max_length=20_000)


class BattleWanted(Body):
    """What to show: anything, a category, a live prompt, or what a ticket waits for."""

    category: str | None = None
    prompt: str | None = None
    image: str | None = None
    ticket: str | None = None


class OnBattle(Body):
    """A battle, by its token."""

    token: str


class VoteCast(OnBattle):
    """A judgement."""

    outcome: str
    reasons: list[str] = Field(default=[], max_length=10)


class Agreement(Body):
    """The version of the consent text that was read."""

    version: str


async def arena_of(request: Request) -> Arena:
    """Return the arena that this server serves."""
    arena: Arena = request.app.state.arena
    return arena


def identify(arena: Arena, request: Any) -> Visitor:
    """Return who asks, from the cookie and the address; `request` is Starlette's or Gradio's."""
    peer = request.client.host if request.client else None
    network = network_of(client_address(peer, request.headers, arena.settings.trusted_proxies))
    try:
        [voter] = arena.tokens.read("voter", request.cookies.get(COOKIE, ""), 1)
        return Visitor(voter, network)
    except Refused:
        return Visitor(new_voter(), network, new=True)


def is_https(arena: Arena, request: Request) -> bool:
    """Whether the visitor speaks TLS, perhaps with a trusted proxy."""
    peer = request.client.host if request.client else None
    forwarded = client_address(peer, request.headers, arena.settings.trusted_proxies) != peer
    scheme = request.headers.get("x-forwarded-proto", "") if forwarded else request.url.scheme
    return scheme == "https"


def keep_cookie(arena: Arena, visitor: Visitor, request: Request, response: Response) -> None:
    """Give a new voter their cookie."""
    if visitor.new:
        value, secure = arena.tokens.sign("voter", visitor.voter), is_https(arena, request)
        response.set_cookie(COOKIE, value, max_age=COOKIE_SECONDS, httponly=True, samesite="lax", secure=secure)


async def visitor_of(request: Request, response: Response) -> Visitor:
    """Return who asks; a new voter's cookie goes out with the answer."""
    arena: Arena = request.app.state.arena
    visitor = identify(arena, request)
    keep_cookie(arena, visitor, request, response)
    return visitor


Served = Annotated[Arena, Depends(arena_of)]
Asking = Annotated[Visitor, Depends(visitor_of)]
router = APIRouter()


@router.get("/api/arena")
def describe(arena: Served, visitor: Asking) -> dict[str, Any]:
    catalog, limits = arena.catalog, arena.settings.limits
    return {
        "title": arena.settings.title,
        "categories": list(catalog.categories),
        "kinds": sorted({prompt.kind for prompt in catalog.prompts.values()}),
        "live": None
        if arena.live is None
        else {"kinds": arena.live.kinds, "prompt_characters": limits.prompt_characters},
        "consent": arena.consent(),
        "reasons": REASONS,
        "reveal_after": arena.settings.reveal_seconds,
        "boards": {"categories": list(arena.board.categories()), "controls": list(CONTROLS)},
    }


@router.post("/api/battle")
async def battle(wanted: BattleWanted, arena: Served, visitor: Asking, response: Response) -> dict[str, Any]:
    if wanted.ticket is not None or wanted.prompt is not None:
        live = (
            await arena.look_live(visitor, wanted.ticket)
            if wanted.ticket is not None
            else await arena.ask_live(visitor, wanted.prompt or "", wanted.image)
        )
        response.status_code = 202 if "ticket" in live else 200
        return live
    return await arena.new_battle(visitor, wanted.category)


@router.post("/api/upload")
async def upload(request: Request, arena: Served, visitor: Asking) -> dict[str, Any]:
    return await arena.upload(visitor, await request.body())


@router.post("/api/vote")
async def vote(cast: VoteCast, arena: Served, visitor: Asking) -> dict[str, Any]:
    return await arena.vote(visitor, cast.token, cast.outcome, cast.reasons)


@router.post("/api/undo")
async def undo(on: OnBattle, arena: Served, visitor: Asking) -> dict[str, Any]:
    return await arena.undo(visitor, on.token)


@router.post("/api/skip")
async def skip(on: OnBattle, arena: Served, visitor: Asking) -> dict[str, Any]:
    return await arena.skip(visitor, on.token)


@router.post("/api/reveal")
async def reveal(on: OnBattle, arena: Served, visitor: Asking) -> dict[str, Any]:
    return await arena.reveal(visitor, on.token)


@router.get("/api/board")
def board(arena: Served, category: str | None = None, control: str | None = None) -> dict[str, Any]:
    return arena.board.answer(category, control)


@router.get("/api/me")
def me(arena: Served, visitor: Asking) -> dict[str, Any]:
    return arena.me(visitor)


@router.post("/api/me/delete")
async def forget(arena: Served, visitor: Asking, response: Response) -> dict[str, Any]:
    deleted = await arena.forget(visitor)
    response.delete_cookie(COOKIE)
    return deleted


@router.get("/api/consent")
def consent(arena: Served) -> dict[str, Any]:
    return arena.consent()


@router.post("/api/consent")
async def agree(agreement: Agreement, arena: Served, visitor: Asking) -> dict[str, Any]:
    return await arena.agree(visitor, agreement.version)


@router.get("/media/{name}")
def picture(name: str, arena: Served) -> Response:
    seconds = arena.settings.battle_minutes * 60
    headers = {"Cache-Control": f"private, max-age={seconds}, immutable"}
    return Response(arena.picture(name), media_type="image/png", headers=headers)


def refused(_request: Request, error: Exception) -> Response:
    """Return the JSON answer to what was refused."""
    assert isinstance(error, Refused)
    headers = {"Retry-After": str(error.more["retry_after"])} if "retry_after" in error.more else None
    return JSONResponse(error.answer(), status_code=error.status, headers=headers)


def invalid(_request: Request, error: Any) -> Response:
    """Return the JSON answer to a body that does not fit: which field, and why."""
    said = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'body'}: {e['msg']}" for e in error.errors())
    return JSONResponse(Refused("invalid", said).answer(), status_code=400)

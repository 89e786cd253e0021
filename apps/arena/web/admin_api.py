"""The admin page's API, behind a password of its own: under /admin/api, JSON in and out.

    POST /admin/api/login      {password}              -> {ok}; an HttpOnly cookie for 8 hours, of /admin alone
    POST /admin/api/logout                             -> {ok}
    GET  /admin/api/overview                           -> {votes, battles, skipped, voters, prompts, exclusions, models}
    GET  /admin/api/votes?before=MS&voter=ID           -> [vote, ...], the latest 200; the last `at` is the next `before`
    GET  /admin/api/voters                             -> [voter, ...], the busiest first, with flags and checks
    GET  /admin/api/exclusions                         -> [exclusion, ...], lifted ones included
    POST /admin/api/exclude    {what, target, reason}  -> {id}; what: voter, battle or prompt
    POST /admin/api/include    {id}                    -> {ok}
    POST /admin/api/retire     {model, retired}        -> {ok}
    GET  /admin/api/consent                            -> {text, version}
    POST /admin/api/consent    {text}                  -> {ok}; "" asks for nothing
    GET  /admin/api/export                             -> a zip: votes.jsonl, events.jsonl

Wrong passwords are slow and counted. Where the server is open beyond this machine the admin page is absent unless it was
asked for; then, and behind a proxy that is not trusted, every path here is a 404 to everybody else.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from apps.arena import admin
from apps.arena.errors import Refused
from apps.arena.service import Arena
from apps.arena.voting import consent as consent_text
from apps.arena.voting import voter_data
from apps.arena.voting.visitors import (
    client_address,
    hash_network,
    is_forwarded,
    is_loopback,
    network_of,
    salt_of_today,
)
from apps.arena.web.api import Asking, Body, Served, arena_of, is_https

COOKIE = "palate_admin"
SECONDS = 8 * 3600


class Login(Body):
    """A password."""

    password: str


class Exclusion(Body):
    """What to leave out, and why."""

    what: str
    target: str
    reason: str = ""


class Lifted(Body):
    """The number of an exclusion."""

    id: int


class Retired(Body):
    """A model, and whether it is shown no more."""

    model: str
    retired: bool


class Text(Body):
    """The consent text, Markdown."""

    text: str


async def may_see(request: Request, arena: Annotated[Arena, Depends(arena_of)]) -> None:
    """Refuse, as if nothing were here, whoever is not on this machine, unless the admin page is open to the network."""
    if request.app.state.admin_everywhere:
        return
    peer = request.client.host if request.client else None
    trusted = arena.settings.trusted_proxies
    address = client_address(peer, request.headers, trusted)
    if not is_loopback(address) or (is_forwarded(request.headers) and address == peer):
        raise Refused("missing", "There is nothing here.")


def owner(request: Request, arena: Annotated[Arena, Depends(arena_of)]) -> None:
    """Refuse whoever has not logged in, or did so under another password."""
    with arena.engine.connect() as connection:
        stored = admin.stored_hash(connection)
    try:
        until, password = arena.tokens.read("admin", request.cookies.get(COOKIE, ""), 2)
    except Refused:
        until, password = "0", ""
    if stored is None or int(until) <= arena.clock() or password != arena.tokens.digest("password", stored):
        raise Refused("login", "Log in first.")


router = APIRouter(prefix="/admin/api", dependencies=[Depends(may_see)])
inside = APIRouter(dependencies=[Depends(owner)])


@router.post("/login")
def login(given: Login, request: Request, response: Response, arena: Served, visitor: Asking) -> dict[str, Any]:
    now, most = arena.clock(), arena.settings.limits.logins
    peer = request.client.host if request.client else None
    network = network_of(client_address(peer, request.headers, arena.settings.trusted_proxies))
    salt = arena.writer.run(lambda connection: salt_of_today(connection, now))
    hashed = hash_network(arena.tokens, network, salt)
    with arena.engine.connect() as connection:
        admin.check_login(connection, hashed, most, now)
        stored = admin.stored_hash(connection)
    right = stored is not None and admin.matches(given.password, stored)
    arena.writer.run(lambda connection: admin.note_login(connection, hashed, most, now, right))
    if not right or stored is None:
        raise Refused("login", "That is not the password.")
    arena.writer.run(lambda connection: voter_data.note_owner(connection, visitor.voter, now))
    value = arena.tokens.sign("admin", now + SECONDS * 1000, arena.tokens.digest("password", stored))
    secure = is_https(arena, request)
    response.set_cookie(COOKIE, value, max_age=SECONDS, httponly=True, samesite="strict", secure=secure, path="/admin")
    return {"ok": True}


@router.post("/logout")
def logout(response: Response) -> dict[str, Any]:
    response.delete_cookie(COOKIE, path="/admin")
    return {"ok": True}


@inside.get("/overview")
def overview(arena: Served) -> dict[str, Any]:
    with arena.engine.connect() as connection:
        return admin.overview(connection)


@inside.get("/votes")
def votes(arena: Served, before: int | None = None, voter: str | None = None) -> list[dict[str, Any]]:
    with arena.engine.connect() as connection:
        return admin.list_votes(connection, before, voter)


@inside.get("/voters")
def voters(arena: Served) -> list[dict[str, Any]]:
    flagged = arena.board.flagged()
    with arena.engine.connect() as connection:
        return admin.list_voters(connection, flagged)


@inside.get("/exclusions")
def exclusions(arena: Served) -> list[dict[str, Any]]:
    with arena.engine.connect() as connection:
        return admin.list_exclusions(connection)


@inside.post("/exclude")
def exclude(wanted: Exclusion, arena: Served) -> dict[str, Any]:
    now = arena.clock()
    number = arena.writer.run(lambda c: admin.exclude(c, wanted.what, wanted.target, wanted.reason, now))
    arena.board.refresh()
    return {"id": number}


@inside.post("/include")
def include(lifted: Lifted, arena: Served) -> dict[str, Any]:
    now = arena.clock()
    arena.writer.run(lambda c: admin.include(c, lifted.id, now))
    arena.board.refresh()
    return {"ok": True}


@inside.post("/retire")
def retire(wanted: Retired, arena: Served) -> dict[str, Any]:
    now = arena.clock()
    arena.writer.run(lambda c: admin.retire(c, wanted.model, wanted.retired, now))
    arena.board.refresh()
    return {"ok": True}


@inside.get("/consent")
def consent(arena: Served) -> dict[str, Any]:
    return arena.consent()


@inside.post("/consent")
def set_consent(wanted: Text, arena: Served) -> dict[str, Any]:
    now = arena.clock()
    arena.writer.run(lambda c: consent_text.change(c, wanted.text, now))
    arena.board.refresh()
    return {"ok": True}


@inside.get("/export")
def export(arena: Served) -> Response:
    from apps.arena.export.log import log_zip

    headers = {"Content-Disposition": 'attachment; filename="arena-log.zip"'}
    return Response(log_zip(arena.engine, arena.tokens), media_type="application/zip", headers=headers)


router.include_router(inside)

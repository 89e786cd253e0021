"""`palate arena`: serve side-by-side battles, a board and an admin page."""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from palate.errors import UserError

if TYPE_CHECKING:
    from apps.arena.service import Arena
    from apps.arena.settings import ArenaSettings

PASSWORD = "PALATE_ARENA_PASSWORD"
DATABASE = "PALATE_ARENA_DATABASE"
LOCAL = ("127.0.0.1", "localhost", "::1")


def main(argv: Sequence[str]) -> None:
    """Open the store, import packs, and serve until interrupted."""
    parser = argparse.ArgumentParser(
        prog="palate arena",
        description=__doc__,
        epilog=f"The admin page is at /admin. It asks for the password in {PASSWORD}, or the one set by --set-password; "
        "without either, a password for this start is printed where the server is open to this machine only.",
    )
    add_store_options(parser)
    parser.add_argument("--pack", action="append", default=[], type=Path, help="battle pack to import; may be repeated")
    parser.add_argument("--demo", action="store_true", help="import the toy's battle pack")
    parser.add_argument(
        "--live",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="pipeline that draws voters' prompts; two or more",
    )
    parser.add_argument(
        "--live-vlm", action="append", default=[], metavar="NAME=MODEL", help="model that answers voters' questions"
    )
    parser.add_argument("--settings", type=Path, help="YAML of settings: limits, checks, proxies (docs/arena.md)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    parser.add_argument("--admin", action="store_true", help="admin page beyond this machine; needs a password")
    parser.add_argument(
        "--set-password", action="store_true", help="ask for the admin password, store its hash, and end"
    )
    parser.add_argument("--no-page", action="store_true", help="serve the API without the page")
    args = parser.parse_args(list(argv))
    if args.set_password:
        _ask_password(args)
        return
    settings = load_settings(args.settings)
    arena = open_arena(args.store, args.database, settings)
    try:
        _serve(arena, args)
    finally:
        arena.close()


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command that opens an arena has."""
    parser.add_argument("--store", type=Path, default=Path("arena"), help="the arena's folder (default: arena)")
    parser.add_argument(
        "--database",
        default=os.environ.get(DATABASE),
        metavar="URL",
        help=f"SQLAlchemy URL, such as postgresql://user@host/name (default: ${DATABASE}, else SQLite in the folder)",
    )


def open_arena(folder: Path, url: str | None, settings: ArenaSettings | None = None) -> Arena:
    """Return the arena in a folder. Raises UserError where the extra `arena` is not installed."""
    try:
        from apps.arena.service import Arena
    except ImportError as error:
        raise UserError(f"The arena needs {error.name}: pip install 'palate[arena]'.") from None
    return Arena(folder, settings, url=url)


def load_settings(path: Path | None) -> ArenaSettings:
    """Return the settings in a YAML file, or the defaults. Raises UserError for an unknown name or a wrong value."""
    from apps.arena.settings import ArenaSettings

    if path is None:
        return ArenaSettings()
    from palate.config import load_config

    if not path.is_file():
        raise UserError(f"No settings at {path}. Give a YAML file.")
    return load_config(ArenaSettings, ["--config", str(path)], "palate arena")[0]


def _serve(arena: Arena, args: argparse.Namespace) -> None:
    import uvicorn

    from apps.arena.packs.demo import demo_pack
    from apps.arena.packs.format import read_pack
    from apps.arena.packs.importing import import_pack
    from apps.arena.web.app import create_app

    packs = [*args.pack, *([demo_pack(args.store / "demo")] if args.demo else [])]
    for path in packs:
        count = import_pack(arena.writer, arena.media, read_pack(path), arena.clock())
        print(f"{path}: {count} new outputs." if count else f"{path}: nothing new.", file=sys.stderr)
    arena.board.refresh()
    if not arena.catalog.shared(None) and not args.live and not args.live_vlm:
        raise UserError(
            "There is nothing to judge: no two models have outputs for one prompt. Give --pack PACK (`palate pack` makes "
            "one), or --demo."
        )
    if args.live or args.live_vlm:
        from apps.arena.live.makers import load_makers

        arena.start_live(load_makers(args.live, args.live_vlm, arena.settings.live))
    printed = _admin_password(arena, local=args.host in LOCAL, everywhere=args.admin)
    app = create_app(arena, ui=not args.no_page, admin_everywhere=args.admin)
    place = f"http://{'localhost' if args.host in (*LOCAL, '0.0.0.0', '::') else args.host}:{args.port}"
    print(f"Arena: {place}\nAdmin: {printed.format(place=place)}", file=sys.stderr)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", proxy_headers=False, server_header=False)


def _admin_password(arena: Arena, *, local: bool, everywhere: bool) -> str:
    """Set the password of this start where there is one to set, and return what to tell the owner."""
    from apps.arena import admin

    given = os.environ.get(PASSWORD)
    with arena.engine.connect() as connection:
        stored = admin.stored_hash(connection)
    if given is not None and not (stored and admin.matches(given, stored)):
        hashed = admin.hash_password(given)
        arena.writer.run(lambda connection: admin.set_password(connection, hashed))
        stored = hashed
    if everywhere and stored is None:
        raise UserError(f"--admin needs a password. Set it by `palate arena --set-password`, or in {PASSWORD}.")
    if not local and not everywhere:
        return "off beyond this machine; --admin opens it"
    if stored is not None:
        return "{place}/admin"
    made = secrets.token_urlsafe(12)
    hashed = admin.hash_password(made)
    arena.writer.run(lambda connection: admin.set_password(connection, hashed))
    return "{place}/admin  password: " + made + "  (--set-password replaces it)"


def _ask_password(args: argparse.Namespace) -> None:
    from apps.arena import admin

    password = getpass.getpass("Admin password: ")
    if password != getpass.getpass("Again: "):
        raise UserError("The two passwords differ. Nothing was changed.")
    hashed = admin.hash_password(password)
    arena = open_arena(args.store, args.database)
    try:
        arena.writer.run(lambda connection: admin.set_password(connection, hashed))
    finally:
        arena.close()
    print(f"The admin password of {args.store} is set.")

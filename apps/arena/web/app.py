"""The server: the API, the admin page, the voting page, behind one guard."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError

from apps.arena.errors import Refused
from apps.arena.service import Arena
from apps.arena.web import admin_api, api
from apps.arena.web.guard import Guard


def create_app(arena: Arena, *, ui: bool = True, admin_everywhere: bool = False) -> FastAPI:
    """Return the FastAPI application of an arena, which it closes when it ends.

    ui: with the Gradio page at /. admin_everywhere: the admin page is there for other machines, too.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        keeping = asyncio.create_task(keep_house())
        gc.collect()
        gc.freeze()  # or a collection walks all of Gradio while a vote waits
        yield
        keeping.cancel()
        await asyncio.to_thread(arena.close)

    async def keep_house() -> None:
        while True:
            await asyncio.to_thread(arena.housekeep)
            await asyncio.sleep(3600)

    app = FastAPI(title="palate arena", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.arena = arena
    app.state.admin_everywhere = admin_everywhere
    app.add_middleware(Guard, upload_bytes=arena.settings.limits.upload_bytes)
    app.add_exception_handler(Refused, api.refused)
    app.add_exception_handler(RequestValidationError, api.invalid)
    app.include_router(api.router)
    app.include_router(admin_api.router)
    if ui:
        from apps.arena.ui import mount

        mount(app, arena)
    return app

"""The voter's page: Gradio Blocks around a stage that speaks to the API, the board, and the voter's own votes."""

from __future__ import annotations

from importlib import resources
from typing import Any

import gradio as gr
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from markupsafe import Markup

from apps.arena.ratings import page as board_page
from apps.arena.service import Arena
from apps.arena.web.admin_api import may_see
from apps.arena.web.api import Asking, Served

router = APIRouter(prefix="/page")


@router.get("/board", response_class=HTMLResponse)
def shared_board(arena: Served, category: str | None = None, control: str | None = None) -> HTMLResponse:
    """Return a board of all votes or of one category as HTML; with status 202 while it is computed for the first time."""
    answer = arena.board.answer(category, control)
    if answer["computed"] is None:
        return HTMLResponse(_note("The board is being computed …"), 202)
    if not answer["votes"]:
        return HTMLResponse(_note(f"No vote {f'in “{category}” ' if category else ''}has been counted yet."))
    return HTMLResponse(board_page.fragment(answer["board"]))


@router.get("/mine", response_class=HTMLResponse)
def own_board(arena: Served, visitor: Asking) -> str:
    """Return what the visitor's own votes say, as HTML."""
    mine = arena.me(visitor)
    if mine["board"] is not None:
        return str(own_table(mine["board"]))
    return _note(
        f"You have cast {mine['votes']} {'vote' if mine['votes'] == 1 else 'votes'}. After {mine['needed']} more whose "
        "models you have seen, a board of your own taste appears here."
    )


def mount(app: FastAPI, arena: Arena) -> None:
    """Put the voter's page at /, the owner's at /admin, and what both load under /page."""
    assets = resources.files("apps.arena.ui").joinpath("assets")
    admin = assets.joinpath("admin.html").read_text(encoding="utf-8")

    @app.get("/admin", dependencies=[Depends(may_see)], response_class=HTMLResponse)
    def owner_page() -> str:
        return admin

    app.include_router(router)
    app.mount("/page", StaticFiles(directory=str(assets)), name="page")
    gr.mount_gradio_app(
        app,
        blocks(arena.settings.title),
        path="/",
        theme=gr.themes.Soft(
            primary_hue="pink",
            neutral_hue="stone",
            font=["ui-sans-serif", "system-ui", "sans-serif"],
            font_mono=["monospace"],
        ),
        css=board_page.css(),
        head='<link rel="stylesheet" href="/page/arena.css"><script type="module" src="/page/arena.js"></script>',
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        show_error=False,
    )


def blocks(title: str) -> gr.Blocks:
    """Return the voter's page: tabs whose places assets/arena.js fills.

    It names no model and has no events, so Gradio's /config has nothing to tell. gr.HTML would do for the places, but it
    evaluates templates in the browser, which the content security policy forbids.
    """
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}", elem_id="arena-title")
        with gr.Tabs():
            for name in ("Vote", "Board", "Your votes"):
                with gr.Tab(name), gr.Column(elem_id=f"arena-{name.lower().replace(' ', '-')}"):
                    gr.Markdown(" ")
    return page


def own_table(board: list[dict[str, Any]]) -> Markup:
    """Return a voter's own board: what their votes alone say, without a claim beyond them."""
    rows = [
        Markup("<tr><th scope='row'>{}</th>{}</tr>").format(
            line["model"],
            Markup("").join(
                Markup("<td>{}</td>").format(cell)
                for cell in (
                    "–" if line["score"] is None else f"{100 * line['score']:.0f} %",
                    *(line[name] for name in ("wins", "losses", "ties", "both_bad", "battles")),
                )
            ),
        )
        for line in sorted(board, key=lambda line: -1 if line["score"] is None else -line["score"])
    ]
    heads = Markup("").join(
        Markup("<th scope='col'>{}</th>").format(name)
        for name in ("model", "your score", "won", "lost", "tied", "both bad", "battles")
    )
    return Markup(
        '<div class="palate-board"><h2>Your taste</h2><p>Share of your decided battles that each model won, ties half.</p>'
        "<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(heads, Markup("").join(rows))


def _note(text: str) -> str:
    return str(Markup('<div class="palate-board"><p>{}</p></div>').format(text))

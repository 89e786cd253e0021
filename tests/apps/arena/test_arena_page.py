"""The pages in a real headless Chromium: voting by mouse and keys, what a page may know, the board and the owner's page."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from sqlalchemy import func, select

from apps.arena.packs.format import Pack, PackItem, PackOutput
from apps.arena.packs.importing import import_pack
from apps.arena.service import Arena
from apps.arena.settings import Live
from apps.arena.store.schema import battles, events, votes
from apps.arena.web.app import create_app
from tests.apps.arena.small import PLAIN, Painter, answer_pack, image_pack

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
pytestmark = [
    pytest.mark.launch,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH (apt install chromium)"),
]
MODELS = ("wombat", "numbat", "quokka")
"""Words that stand nowhere in Gradio's own files."""
JUDGING, VOTED, REVEALED = (f'.stage[data-phase="{phase}"]' for phase in ("judging", "voted", "revealed"))


@dataclass
class Site:
    """A served arena."""

    arena: Arena
    url: str

    def count(self, table: Any = votes, *where: Any) -> int:
        with self.arena.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one()


def hostile_pack() -> Pack:
    """Answers that try to become part of the page."""
    text = "**bold** <img src=x onerror=\"document.title='taken'\"> [go](javascript:alert(1)) <script>1</script>"
    outputs = (PackOutput("quoll", text=text), PackOutput("bettong", text=text + "!"))
    items = tuple(PackItem(f"What now, {number}?", outputs, "hostile") for number in range(20))
    return Pack("hostile", items, "ab" * 16, {}.__getitem__)


@contextmanager
def serving(arena: Arena) -> Iterator[Site]:
    """Serve an arena on a port of this machine."""
    server = uvicorn.Server(uvicorn.Config(create_app(arena), port=0, log_level="warning", server_header=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Site(arena, f"http://127.0.0.1:{port}")
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An arena with pictures and answers."""
    arena = Arena(tmp_path_factory.mktemp("page") / "arena", replace(PLAIN, personal_board_votes=2, board_seconds=1))
    for pack in (image_pack(models=MODELS), answer_pack(), hostile_pack()):
        import_pack(arena.writer, arena.media, pack, arena.clock())
    arena.board.refresh()
    with serving(arena) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """A new voter before a battle. At the end, the page must not have complained."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    made = context.new_page()
    made.set_default_timeout(60_000)
    complaints: list[str] = []
    made.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.goto(site.url)
    made.wait_for_selector(JUDGING)
    yield made
    context.close()
    assert not complaints


def pick(page: Any, category: str) -> None:
    page.select_option('[data-arena="category"]', category)
    kind = "image" if category in ("even", "odd") else "text"
    page.wait_for_selector(f'.stage[data-kind="{kind}"][data-phase="judging"]')


def names(page: Any) -> set[str]:
    return set(page.locator(".name").all_inner_texts())


def test_a_vote_by_mouse_is_one_vote_however_often_it_is_clicked(page: Any, site: Site) -> None:
    before = site.count()
    page.locator('[data-outcome="a"]').dblclick()
    page.wait_for_selector(VOTED)
    assert names(page) == {""} and site.count() == before + 1
    page.locator('[data-arena="reveal"]').dblclick()
    page.wait_for_selector(REVEALED)
    assert "" not in names(page) and len(names(page)) == 2
    page.locator('[data-arena="next"]').click()
    page.wait_for_selector(JUDGING)
    assert names(page) == {""} and site.count() == before + 1


def test_a_battle_by_keyboard_alone(page: Any, site: Site) -> None:
    """Reasons, vote, undo, another vote, reveal, next, skip: and the store has what the keys said."""
    pick(page, "even")
    before, skipped = site.count(), site.count(battles, battles.c.skipped.is_not(None))
    page.keyboard.press("2")
    page.keyboard.press("b")
    page.wait_for_selector(VOTED)
    page.keyboard.press("u")
    page.wait_for_selector(JUDGING)
    assert site.count() == before and site.count(events, events.c.kind == "withdraw") >= 1
    page.keyboard.press("t")
    page.wait_for_selector(VOTED)
    page.keyboard.press("Enter")
    page.wait_for_selector(REVEALED)
    with site.arena.engine.connect() as connection:
        row = connection.execute(select(votes).order_by(votes.c.created.desc())).first()
    assert row is not None and (row.outcome, row.reasons) == ("tie", '["beauty"]')
    page.keyboard.press("Enter")
    page.wait_for_selector(JUDGING)
    first = page.locator(".view img").first.get_attribute("src")
    page.keyboard.press("s")
    page.wait_for_selector(f'{JUDGING} [data-side="a"] img:not([src="{first}"])')
    assert site.count(battles, battles.c.skipped.is_not(None)) == skipped + 1


def test_blink_and_zoom_show_the_same_place_of_both(page: Any) -> None:
    pick(page, "even")
    a, b = (page.locator(f'[data-arena="view-{side}"] img') for side in "ab")
    own, other = a.get_attribute("src"), b.get_attribute("src")
    page.keyboard.down(" ")
    assert a.get_attribute("src") == other
    page.keyboard.up(" ")
    assert a.get_attribute("src") == own
    a.hover()
    page.mouse.wheel(0, -400)
    page.keyboard.press("+")
    moved = a.get_attribute("style")
    assert "scale(" in moved and "scale(1)" not in moved and b.get_attribute("style") == moved
    page.keyboard.press("0")
    assert "scale(1)" in a.get_attribute("style")


def test_nothing_tells_the_models_before_the_vote(page: Any, site: Site) -> None:
    """Page, Gradio's configuration, every answer so far, its headers, the files' bytes: no name in any of them."""
    pick(page, "even")
    said = [page.content(), str(page.context.storage_state())]
    for path in ("/config", "/gradio_api/info", "/api/arena", "/page/mine"):
        answer = page.request.get(site.url + path)
        said += [answer.text(), str(answer.headers)]
    pictures = [page.request.get(site.url + image.get_attribute("src")) for image in page.locator(".view img").all()]
    assert len(pictures) == 2
    said += [str(picture.headers) + picture.url for picture in pictures]
    bodies = [picture.body() for picture in pictures]
    for model in (*MODELS, "quoll", "bettong"):
        assert not [text for text in said if model in text]
        assert not [body for body in bodies if model.encode() in body]
    assert len(bodies[0]) == len(bodies[1])
    first, second = ({k: v for k, v in picture.headers.items() if k != "date"} for picture in pictures)
    assert first == second


def test_a_reload_finds_the_battle_and_the_vote_again(page: Any, site: Site) -> None:
    pick(page, "odd")
    shown = page.locator(".view img").first.get_attribute("src")
    page.reload()
    page.wait_for_selector(JUDGING)
    assert page.locator(".view img").first.get_attribute("src") == shown
    before = site.count()
    page.keyboard.press("x")
    page.wait_for_selector(VOTED)
    page.reload()
    page.wait_for_selector(VOTED)
    page.keyboard.press("Enter")
    page.wait_for_selector(REVEALED)
    page.goto("about:blank")
    page.go_back()
    page.wait_for_selector(REVEALED)
    assert "" not in names(page) and site.count() == before + 1


def test_another_category_and_back_loses_no_battle(page: Any) -> None:
    """What was shown comes back, and what was fetched ahead stays: odd asks for two battles, even for none again."""
    pick(page, "even")
    page.wait_for_load_state("networkidle")
    shown, asked = page.locator(".view img").first.get_attribute("src"), list[str]()
    page.on("request", lambda request: request.url.endswith("/api/battle") and asked.append(request.post_data))
    pick(page, "odd")
    assert page.locator(".view img").first.get_attribute("src") != shown
    pick(page, "even")
    assert page.locator(".view img").first.get_attribute("src") == shown
    assert asked and all("odd" in body for body in asked) and len(asked) <= 2
    page.reload()
    page.wait_for_selector(JUDGING)
    assert page.locator('[data-arena="category"]').input_value() == "even"


def test_a_reload_keeps_the_place_in_the_queue(browser: Any, tmp_path: Path) -> None:
    """A prompt of one's own is being drawn, the page is loaded again, and its battle comes: one was asked for."""
    go = threading.Event()
    arena = Arena(tmp_path, replace(PLAIN, live=Live(release_seconds=1)))
    import_pack(arena.writer, arena.media, image_pack(), arena.clock())
    arena.board.refresh()
    arena.start_live([Painter("wombat", go), Painter("numbat", go)])
    with serving(arena) as served:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(served.url)
        page.wait_for_selector(JUDGING)
        page.get_by_label("Your own prompt").fill("a blue cat")
        page.get_by_role("button", name="Ask both").click()
        page.wait_for_selector("text=Yours is being made")
        page.reload()
        page.wait_for_selector("text=Yours is being made")
        go.set()
        page.wait_for_selector(JUDGING)
        assert page.locator(".prompt").inner_text() == "a blue cat"
        assert served.count(battles, battles.c.kind == "live") == 1
        page.reload()
        page.wait_for_selector(JUDGING)
        assert page.locator(".prompt").inner_text() == "a blue cat"
        context.close()


def test_two_tabs_of_one_voter_hold_two_battles(page: Any, site: Site) -> None:
    other = page.context.new_page()
    other.goto(site.url)
    other.wait_for_selector(JUDGING)
    before = site.count()
    for tab in (page, other):
        tab.keyboard.press("a")
        tab.wait_for_selector(VOTED)
    assert site.count() == before + 2
    with site.arena.engine.connect() as connection:
        last = connection.execute(select(votes).order_by(votes.c.created.desc()).limit(2)).all()
    assert last[0].voter == last[1].voter and last[0].battle != last[1].battle


def test_on_a_phone_everything_fits_and_can_be_hit(browser: Any, site: Site) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone = context.new_page()
    phone.goto(site.url)
    phone.wait_for_selector(JUDGING, timeout=60_000)
    width = phone.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    for choice in phone.locator(".choices button").all():
        box = choice.bounding_box()
        assert box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= 390
    phone.locator('[data-outcome="b"]').tap()
    phone.wait_for_selector(VOTED)
    context.close()


def test_what_models_write_cannot_act(page: Any) -> None:
    """Markdown is shown as Markdown; tags are shown as text, and there are no links or pictures."""
    pick(page, "hostile")
    answer = page.locator('[data-arena="view-a"]')
    assert answer.locator("strong").inner_text() == "bold"
    assert "<script>1</script>" in answer.inner_text()
    assert answer.locator("img, a, script").count() == 0 and page.title() != "taken"


def test_a_screen_reader_hears_what_matters(page: Any) -> None:
    pick(page, "even")
    for name in ("A is better", "Tie", "Both are bad", "B is better", "Skip"):
        assert page.get_by_role("button", name=name).count() == 1
    assert {image.get_attribute("alt") for image in page.locator(".view img").all()} == {"Result A", "Result B"}
    page.keyboard.press("a")
    page.wait_for_selector(VOTED)
    assert "Your vote is kept" in page.locator(".stage [role=status]").inner_text()


def test_the_board_and_one_s_own_votes(page: Any, site: Site) -> None:
    for _ in range(2):
        page.keyboard.press("a")
        page.wait_for_selector(VOTED)
        page.keyboard.press("Enter")
        page.wait_for_selector(REVEALED)
        page.keyboard.press("Enter")
        page.wait_for_selector(JUDGING)
    page.get_by_role("tab", name="Your votes").click()
    page.wait_for_selector("text=Your taste")
    page.get_by_role("tab", name="Board").click()
    page.wait_for_selector("#arena-board .palate-board table")


def test_the_board_shows_what_its_reader_chooses(page: Any, site: Site) -> None:
    """A category, and the side held equal; what was opened stays open while the board is drawn anew."""
    for category in ("even", "hostile"):
        pick(page, category)
        page.keyboard.press("a")
        page.wait_for_selector(VOTED)
        page.keyboard.press("Enter")
        page.wait_for_selector(REVEALED)
        page.keyboard.press("Enter")
        page.wait_for_selector(JUDGING)
    site.arena.board.refresh()
    site.arena.board.compute()
    page.get_by_role("tab", name="Board").click()
    details = page.locator('#arena-board details[data-name="even"]')
    details.locator("summary").click()
    details.locator("table").wait_for()
    page.get_by_label("Hold equal").select_option("side")
    page.wait_for_selector("#arena-board >> text=/Pull of side A|Nothing is held equal here/")
    assert details.evaluate("element => element.open")
    page.get_by_label("Category").last.select_option("hostile")
    page.wait_for_selector("#arena-board .lede >> text=/quoll|bettong/")
    assert page.locator("#arena-board .heat tbody tr").count() == 2


def test_who_does_not_agree_sees_no_battle(browser: Any, site: Site) -> None:
    """Escape closes the dialog, and is no agreement."""
    from apps.arena.voting.consent import change

    def ask(text: str) -> None:
        site.arena.writer.run(lambda connection: change(connection, text, site.arena.clock()))
        site.arena.board.refresh()

    ask("Votes are public.")
    context = browser.new_context()
    page = context.new_page()
    page.goto(site.url)
    try:
        page.get_by_role("button", name="I agree").wait_for(timeout=60_000)
        page.keyboard.press("Escape")
        page.wait_for_selector("text=Battles are shown to those who agree")
        assert site.count(events, events.c.kind == "consent") == 0
        page.get_by_role("button", name="Next").click()
        page.get_by_role("button", name="I agree").click()
        page.wait_for_selector(JUDGING)
        assert site.count(events, events.c.kind == "consent") == 1
    finally:
        ask("")
        context.close()


def test_the_owner_logs_in_and_sets_a_voter_aside(page: Any, site: Site) -> None:
    from apps.arena import admin

    page.keyboard.press("a")
    page.wait_for_selector(VOTED)
    hashed = admin.hash_password("correct horse")
    site.arena.writer.run(lambda connection: admin.set_password(connection, hashed))
    owner = page.context.new_page()
    owner.goto(f"{site.url}/admin")
    owner.fill("input[type=password]", "correct horse")
    owner.get_by_role("button", name="Log in").click()
    owner.wait_for_selector("#voters table")
    owner.on("dialog", lambda dialog: dialog.accept("a test"))
    owner.locator("#voters button").first.click()
    owner.wait_for_selector("#exclusions >> text=a test")
    owner.locator("#exclusions button").click()
    owner.wait_for_selector("#exclusions >> text=lifted")

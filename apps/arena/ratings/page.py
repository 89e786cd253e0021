"""The board as HTML: a fragment for the arena's page, or a page of its own.

No script, no inline style, nothing from the network; names are escaped. Colours are CSS variables, dark within an element
of class `dark`, and on the page of its own as the reader's system has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

import palate
from palate.charts import Chart, Line, draw, ticks

_LIGHT = {
    "paper": "#faf8f5", "ink": "#211d1e", "soft": "#6a6163", "line": "#e6e0da", "track": "#efeae4", "accent": "#a1295c",
    "warn": "#7a5200", "warn-wash": "#fdf3dc",
    "up1": "#f5dde6", "up2": "#eebfd0", "up3": "#e39ab6", "up4": "#d87a9f",
    "down1": "#e3e7ee", "down2": "#c9d3e1", "down3": "#a9bad0", "down4": "#8ba2bf",
}  # fmt: skip
_DARK = {
    "paper": "#161314", "ink": "#eee8e4", "soft": "#aba1a0", "line": "#362f31", "track": "#262123", "accent": "#f08cb4",
    "warn": "#f0c674", "warn-wash": "#322815",
    "up1": "#3d2430", "up2": "#562c41", "up3": "#733655", "up4": "#8f426a",
    "down1": "#232a35", "down2": "#2b3747", "down3": "#35475e", "down4": "#415975",
}  # fmt: skip
_SERIF = 'ui-serif, "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, "Times New Roman", serif'
_REACH = (
    250  # Elo points: longest bar drawn to either side of a rating, so that a newcomer's does not flatten the rest.
)


def fragment(board: Mapping[str, Any]) -> Markup:
    """Return the board, `Board.as_dict()`, as one element of class `palate-board`. It needs `css()` on its page."""
    return Markup(_template().render(board=board))


def css() -> str:
    """Return the style of fragments, light, and dark under an element of class `dark`."""
    sheet = resources.files("apps.arena.ratings").joinpath("board.css").read_text(encoding="utf-8")
    light = f".palate-board {{ {_variables(_LIGHT)} --serif: {_SERIF}; }}"
    return f"{light}\n.dark .palate-board {{ {_variables(_DARK)} }}\n{sheet}"


def page(board: Mapping[str, Any]) -> str:
    """Return a self-contained page; it asks the network for nothing, which its content security policy enforces."""
    title = escape(board["title"])
    night = f".palate-board {{ {_variables(_DARK)} }} body {{ background: {_DARK['paper']}; }}"
    dark = f"@media (prefers-color-scheme: dark) {{ {night} }}"
    style = (
        f"{css()}\nbody {{ margin: 0; background: {_LIGHT['paper']}; }}\n"
        ".palate-board { width: min(1016px, 100% - 40px); margin: 0 auto; padding: 48px 0 64px; }\n"
        f".palate-board footer {{ margin-top: 56px; color: var(--soft); font-size: 14px; }}\n{dark}"
    )
    note = f"<footer>palate {palate.__version__}</footer></div>"
    body = str(fragment(board)).rstrip().removesuffix("</div>") + note
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{style}\n</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        axis=_axis, bar=_bar, cell=_cell, count=_count, day=_day, growth=_growth, interval=_interval, lede=_lede,
        odds=_odds, percent=_percent, points=_points, ranks=_ranks, share=_share,
    )  # fmt: skip
    source = resources.files("apps.arena.ratings").joinpath("board.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def _lede(section: Mapping[str, Any]) -> str:
    """Return the result in one sentence, no surer than the ranks are."""
    rows = section["rows"]
    if not rows:
        return "No model can be rated yet."
    first = [row["model"] for row in rows if row["rank_best"] == 1]
    if len(first) == 1:
        return f"{first[0]} is first."
    if len(first) == 2:
        return f"{rows[0]['model']} leads; {next(m for m in first if m != rows[0]['model'])} may be as good."
    return f"{rows[0]['model']} leads; {len(first) - 1} others may be as good."


def _scale(section: Mapping[str, Any]) -> tuple[float, float]:
    ends = []
    for row in section["rows"]:
        low, high = (row["rating"] if row[end] is None else row[end] for end in ("low_all", "high_all"))
        ends += [max(low, row["rating"] - _REACH), min(high, row["rating"] + _REACH)]
    low, high = min(ends), max(ends)
    room = 0.05 * (high - low) or 50.0
    return low - room, high + room


def _axis(section: Mapping[str, Any]) -> list[tuple[str, str]]:
    low, high = _scale(section)
    return [(f"{100 * (at - low) / (high - low):.2f}", f"{at:g}") for at in ticks(low, high, 4)]


def _bar(row: Mapping[str, Any], section: Mapping[str, Any]) -> Markup:
    """Return a row's interval as SVG that fills its cell."""
    low, high = _scale(section)

    def at(value: float | None, otherwise: float) -> str:
        return f"{100 * (min(max(otherwise if value is None else value, low), high) - low) / (high - low):.2f}%"

    rules = "".join(f'<line class="rule" x1="{x}%" x2="{x}%" y1="0" y2="26"/>' for x, _ in _axis(section))
    spans = "".join(
        f'<line class="{kind}" x1="{at(row[a], low)}" x2="{at(row[b], high)}" y1="13" y2="13"/>'
        for kind, a, b in (("thin", "low_all", "high_all"), ("bold", "low", "high"))
    )
    dot = f'<circle class="dot" cx="{at(row["rating"], low)}" cy="13" r="6"/>'
    return Markup(f'<svg aria-hidden="true">{rules}{spans}{dot}</svg>')


def _cell(heads: Mapping[str, Any], i: int, j: int) -> Markup:
    """Return one cell of the heat map, with what it means as its tooltip."""
    if i == j:
        return Markup('<td class="self"></td>')
    expected = heads["expected"][i][j]
    shade = min(4, math.floor(abs(expected - 0.5) / 0.08))
    kind = f' class="{"up" if expected > 0.5 else "down"}{shade}"' if shade else ""
    text = escape(f"{100 * expected:.0f}")
    if heads["verdict"][i][j] != "open":
        text = Markup(f'<b class="{"all" if heads["everywhere"][i][j] else "pair"}">{text}</b>')
    said = (
        f"{heads['models'][i]} against {heads['models'][j]}: {heads['wins'][i][j]} won, {heads['wins'][j][i]} lost, "
        f"{heads['ties'][i][j]} tied; first votes {heads['first'][i][j]} to {heads['first'][j][i]}, "
        f"E = {_evidence(heads['evidence'][i][j])}, {_WORDS[heads['verdict'][i][j]]}"
    )
    return Markup(f'<td{kind} title="{escape(said)}">{text}</td>')


_WORDS = {"ahead": "better", "behind": "worse", "open": "open"}


def _evidence(power: float) -> str:
    return f"{10**power:.3g}" if power < 4 else f"10^{power:.0f}"


_UNITS = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0))


def _growth(points: list[tuple[float, int]]) -> Markup:
    first, last = points[0][0], points[-1][0]
    unit, length = next((unit, length) for unit, length in _UNITS if last - first >= 2 * length or unit == "minutes")
    line = Line("votes", [((at - first) / length, votes) for at, votes in points])
    return draw(Chart("Growth of votes", [line], x_label=f"{unit} since {_moment(first, unit)}", smooth=1))


def _count(value: int) -> str:
    return f"{value:,}".replace(",", "\u00a0")


def _points(value: float) -> str:
    return f"{value:.0f}".replace("-", "−")


def _interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None:
        return "unknown"
    return f"{_points(row['low'])} – {_points(row['high'])}"


def _ranks(row: Mapping[str, Any]) -> str:
    return str(row["rank_best"]) if row["rank_best"] == row["rank_worst"] else f"{row['rank_best']}–{row['rank_worst']}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.{0 if value in (0, 1) else 1}f}\u00a0%"


def _percent(value: float) -> str:
    return f"{100 * value:g}\u00a0%"


def _odds(effect: Mapping[str, Any]) -> str:
    """Return an effect as a factor on the odds of A."""
    low, high = ("?" if effect[end] is None else _factor(effect[end]) for end in ("low", "high"))
    of = "" if effect["name"] == "side" else f", for {effect['scale']:.3g} more"
    return f"odds × {_factor(effect['value'])} ({low} – {high}){of}"


def _factor(log_odds: float) -> str:
    return f"{math.exp(log_odds):.2f}" if abs(log_odds) < 10 else "∞" if log_odds > 0 else "0"


def _moment(moment: float, unit: str) -> str:
    return _day(moment) if unit == "days" else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M}"


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")

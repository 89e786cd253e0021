"""Answers of models as HTML that can do nothing: what a model writes is not trusted."""

from __future__ import annotations

from functools import cache

from markdown_it import MarkdownIt


@cache
def _parser() -> MarkdownIt:
    # "html": False escapes tags; images would fetch what an answer names.
    return (
        MarkdownIt("commonmark", {"html": False, "linkify": False})
        .enable("table")
        .disable(["image", "link", "autolink"])
    )


def to_html(text: str) -> str:
    """Return Markdown as HTML: headings, lists, tables, code. Tags are shown as text; links and images are not made."""
    html: str = _parser().render(text)
    return html

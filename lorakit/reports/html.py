"""Markup for one self-contained page: no scripts, no network, light and dark, readable without colour.

Every function escapes text, also control characters and marks that change its direction; only `Html` is
inserted unchanged, and only this package creates `Html`. The page's content security policy forbids
everything but its own styles and inlined images, so that even markup that got through could neither run nor
load anything.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lorakit.core.visible_text import escape_controls

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)

# A number with sign, interval or short unit: "12", "-3.5 %", "+1.2 [0.3, 2.1]", "480 MB", "3/4".
_NUMBER = re.compile(r"^[+\-−±]?\s*\d[\d\s.,+\-−–±×/:\[\]()%]*([a-zA-Zµ]{1,3}(/s)?)?$")
_EMPTY_CELLS = ("", "–")  # allowed in a column of numbers


class Html(str):
    """Markup that is safe to insert into a page unchanged."""

    __slots__ = ()


def escape(text: object) -> Html:
    """Escape text for content and quoted attributes; `Html` is returned unchanged."""
    return text if isinstance(text, Html) else Html(html.escape(escape_controls(str(text)), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Join parts to one piece of markup; those that are not `Html` are escaped."""
    return Html(separator.join(escape(part) for part in parts))


def tag(name: str, /, *parts: object, **attributes: object) -> Html:
    """Return one element; `text_anchor` becomes `text-anchor`, `class_` becomes `class`, None is left out."""
    opening = f"<{name}"
    for key, value in attributes.items():
        if value is not None:
            quoted = html.escape(escape_controls(str(value)), quote=False).replace('"', "&quot;")
            opening += f' {key.rstrip("_").replace("_", "-")}="{quoted}"'
    closing = "" if name in ("br", "img", "input", "meta") else f"</{name}>"
    return Html(f"{opening}>{join(parts)}{closing}")


def html_page(title: str, body: Iterable[Html], *, subtitle: str = "", style: str = "") -> str:
    """Return a whole HTML document that any browser opens offline; `style` is additional CSS."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8") + style
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=CONTENT_SECURITY_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style)),
    ]
    header = [tag("h1", title), *([tag("p", subtitle, class_="subtitle")] if subtitle else [])]
    content = [
        tag("header", *header, class_="title"),
        tag("main", join(body, "\n")),
        tag("footer", "Written by lorakit. This page is one file and loads nothing."),
    ]
    inner = tag("head", join(head, "\n")) + "\n" + tag("body", tag("div", join(content, "\n"), class_="page"))
    return "<!doctype html>\n" + tag("html", Html(inner), lang="en") + "\n"


def section(heading: str, *parts: Html) -> Html:
    """Return a part of the page with a heading."""
    return tag("section", tag("h2", heading), "\n", join(parts, "\n"))


def paragraph(text: str) -> Html:
    """Return a paragraph of text."""
    return tag("p", text)


def summary_banner(text: str, good: bool | None) -> Html:
    """Return the first line of a report; `good` sets its colour and its sign, None is neutral."""
    css_class, sign = {True: ("good", "✓"), False: ("bad", "!"), None: ("note", "i")}[good]
    mark = tag("span", sign, class_="sign", aria_hidden="true")
    return tag("div", mark, tag("span", text), class_=f"verdict {css_class}")


def badge(text: str, good: bool | None = None) -> Html:
    """Return a small label, such as a score under an image."""
    return tag("span", text, class_={True: "badge good", False: "badge bad", None: "badge"}[good])


def columns(*parts: Html) -> Html:
    """Return parts side by side, each at least as wide as half a chart."""
    return tag("div", join(parts, "\n"), class_="columns")


def card(heading: str, *parts: Html, good: bool | None = None) -> Html:
    """Return a box with a heading; `good` sets the colour of its edge."""
    css_class = {True: "card good", False: "card bad", None: "card"}[good]
    return tag("div", tag("h3", heading), join(parts, "\n"), class_=css_class)


def details(summary: str, *parts: Html) -> Html:
    """Return parts that are hidden until a click on the summary."""
    return tag("details", tag("summary", summary), "\n", join(parts, "\n"))


def _numeric_columns(rows: Sequence[Sequence[object]], count: int) -> list[bool]:
    """Return True for each column that holds only numbers, and at least one."""
    columns = [[row[i] for row in rows if str(row[i]).strip() not in _EMPTY_CELLS] for i in range(count)]
    return [
        bool(cells) and all(not isinstance(cell, Html) and bool(_NUMBER.match(str(cell))) for cell in cells)
        for cells in columns
    ]


def html_table(headers: Sequence[str], rows: Sequence[Sequence[str | Html | int | float]]) -> Html:
    """Return a table; columns with only numbers are aligned to the right.

    Each row is as long as the headers; headers that are all empty are not shown.
    """
    classes = ["number" if numeric else None for numeric in _numeric_columns(rows, len(headers))]
    head = [tag("th", text, scope="col", class_=name) for text, name in zip(headers, classes, strict=True)]
    body = [
        tag("tr", *(tag("td", cell, class_=name) for cell, name in zip(row, classes, strict=True)), "\n")
        for row in rows
    ]
    return _scrolling(tag("tr", *head) if any(headers) else Html(), body, "scroll")


def html_grid(column_heads: Sequence[str], row_heads: Sequence[str], cells: Sequence[Sequence[Html]]) -> Html:
    """Return a grid of cells in a box that scrolls, with heads that stay in view."""
    head = tag("tr", tag("th"), *(tag("th", text, scope="col") for text in column_heads))
    body = [
        tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in row), "\n")
        for name, row in zip(row_heads, cells, strict=True)
    ]
    return _scrolling(head, body, "scroll grid")


def _scrolling(head: Html, body: Iterable[Html], css_class: str) -> Html:
    return tag("div", tag("table", tag("thead", head), "\n", tag("tbody", *body)), class_=css_class)

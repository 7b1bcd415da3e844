"""Markup for one self-contained page: no scripts, no network, light and dark, readable without colour.

Every function that takes text escapes it; only `Html` passes as it is, and only this package makes `Html`.
The page's content security policy forbids everything but its own styles and inlined pictures, so that even
markup that slipped through could neither run nor load anything.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)

# A number with sign, interval or short unit: "12", "-3.5 %", "+1.2 [0.3, 2.1]", "480 MB", "3/4".
_NUMBER = re.compile(r"^[+\-−±]?\s*\d[\d\s.,+\-−–±×/:\[\]()%]*([a-zA-Zµ]{1,3}(/s)?)?$")
_EMPTY_CELLS = ("", "–")  # cells of a column of numbers that hold none


class Html(str):
    """Markup that is safe to place in a page as it is."""

    __slots__ = ()


def escape(text: object) -> Html:
    """Text as markup: `Html` stays, anything else is escaped for use in content and in quoted attributes."""
    return text if isinstance(text, Html) else Html(html.escape(str(text), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """One piece of markup from many; parts that are not `Html` are escaped."""
    return Html(separator.join(escape(part) for part in parts))


def tag(name: str, /, *parts: object, **attributes: object) -> Html:
    """One element; `text_anchor="end"` becomes `text-anchor`, `class_` becomes `class`, None is left out."""
    opening = f"<{name}"
    for key, value in attributes.items():
        if value is not None:
            quoted = html.escape(str(value), quote=False).replace('"', "&quot;")
            opening += f' {key.rstrip("_").replace("_", "-")}="{quoted}"'
    closing = "" if name in ("br", "img", "input", "meta") else f"</{name}>"
    return Html(f"{opening}>{join(parts)}{closing}")


def html_page(title: str, body: Iterable[Html], *, subtitle: str = "", style: str = "") -> str:
    """A whole HTML document that opens from disk, offline, in any browser; `style` is CSS of its own."""
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
    """A part of the page under its own heading."""
    return tag("section", tag("h2", heading), "\n", join(parts, "\n"))


def paragraph(text: str) -> Html:
    """A paragraph of text."""
    return tag("p", text)


def summary_banner(text: str, good: bool | None) -> Html:
    """The one line to read first; None is neither good nor bad. A sign says it beside the colour."""
    kind, sign = {True: ("good", "✓"), False: ("bad", "!"), None: ("note", "i")}[good]
    mark = tag("span", sign, class_="sign", aria_hidden="true")
    return tag("div", mark, tag("span", text), class_=f"verdict {kind}")


def badge(text: str, good: bool | None = None) -> Html:
    """A small label, such as a score under a picture."""
    return tag("span", text, class_={True: "badge good", False: "badge bad", None: "badge"}[good])


def columns(*parts: Html) -> Html:
    """Parts side by side, as many as fit, each at least as wide as half a chart."""
    return tag("div", join(parts, "\n"), class_="columns")


def card(heading: str, *parts: Html, good: bool | None = None) -> Html:
    """A boxed part with a heading of its own; its edge has the colour of `verdict`."""
    kind = {True: "card good", False: "card bad", None: "card"}[good]
    return tag("div", tag("h3", heading), join(parts, "\n"), class_=kind)


def details(summary: str, *parts: Html) -> Html:
    """Parts that stay folded until opened."""
    return tag("details", tag("summary", summary), "\n", join(parts, "\n"))


def _numeric_columns(rows: Sequence[Sequence[object]], count: int) -> list[bool]:
    """Which columns hold nothing but numbers, and at least one."""
    columns = [[row[i] for row in rows if str(row[i]).strip() not in _EMPTY_CELLS] for i in range(count)]
    return [
        bool(cells) and all(not isinstance(cell, Html) and bool(_NUMBER.match(str(cell))) for cell in cells)
        for cells in columns
    ]


def html_table(headers: Sequence[str], rows: Sequence[Sequence[str | Html | int | float]]) -> Html:
    """A table; columns that hold only numbers are aligned to the right. Rows are as long as the headers.

    Headers that are all empty are not shown.
    """
    kinds = ["number" if numeric else None for numeric in _numeric_columns(rows, len(headers))]
    head = [tag("th", text, scope="col", class_=kind) for text, kind in zip(headers, kinds, strict=True)]
    body = [
        tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)), "\n")
        for row in rows
    ]
    return _scrolling(tag("tr", *head) if any(headers) else Html(), body, "scroll")


def html_grid(column_heads: Sequence[str], row_heads: Sequence[str], cells: Sequence[Sequence[Html]]) -> Html:
    """Cells by row and column in a box that scrolls while its heads stay in view."""
    head = tag("tr", tag("th"), *(tag("th", text, scope="col") for text in column_heads))
    body = [
        tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in row), "\n")
        for name, row in zip(row_heads, cells, strict=True)
    ]
    return _scrolling(head, body, "scroll grid")


def _scrolling(head: Html, body: Iterable[Html], kind: str) -> Html:
    return tag("div", tag("table", tag("thead", head), "\n", tag("tbody", *body)), class_=kind)

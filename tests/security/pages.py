"""Check that an HTML page has no active content."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from lorakit.reports.rendering import CONTENT_SECURITY_POLICY

NAMESPACES = {"http://www.w3.org/2000/svg"}  # a name, never loaded
ACTIVE = {
    "script",
    "iframe",
    "object",
    "embed",
    "link",
    "form",
    "base",
    "applet",
    "frame",
    "audio",
    "video",
}
ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style><svg onload=alert(1)>",
    "{{7*7}} ${7*7} <%= 7*7 %>",
    "javascript:alert(1)",
    "=HYPERLINK(1)",
    "&lt;b&gt; &amp;quot;",
)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> tuple[list[tuple[str, dict[str, str | None]]], str]:
    """Return the elements with their attributes, and the text of a page."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader.elements, "".join(reader.text)


def faults(page: str) -> list[str]:
    """Return everything in a page that could execute or load something, and a missing policy."""
    elements, _ = read(page)
    found = [f"<{name}>" for name, _ in elements if name in ACTIVE]
    for name, attributes in elements:
        found += [
            f"<{name} {key}>" for key in attributes if key.startswith("on") or key in ("srcset", "srcdoc")
        ]
        source = (
            attributes.get("src") or attributes.get("href") or attributes.get("xlink:href") or "data:image/"
        )
        is_file_link = name == "a" and source.startswith(("./", "../")) and ":" not in source
        if not source.startswith(("data:image/", "#")) and not is_file_link:
            found.append(f"<{name} src={source[:80]}>")
        if "url(" in (attributes.get("style") or ""):
            found.append(f"<{name} style>")
    policy = {"http-equiv": "Content-Security-Policy", "content": CONTENT_SECURITY_POLICY}
    if ("meta", policy) not in elements:
        found.append("no content security policy")
    style = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    found += re.findall(r"url\([^)]*\)|@import[^;]*", style)
    return found

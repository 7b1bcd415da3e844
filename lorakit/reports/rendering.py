"""Pages and blocks from Jinja2 templates: all text is escaped, and a page loads nothing.

Values with `__html__` (blocks and `Markup`) are inserted unchanged; every other value is text, escaped by the
environment, with control characters and marks that change its direction made visible. The page's content
security policy forbids everything but its own styles and inlined images, so that even markup that got
through could neither run nor load anything.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lorakit.core.visible_text import escape_controls

TEMPLATES = Path(__file__).with_name("templates")
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


class Block:
    """A value that a template inserts as markup: the macro of this name in blocks.html draws it."""

    macro: ClassVar[str]

    def __html__(self) -> str:
        return render_block(self.macro, self)


@functools.cache
def environment(folder: Path = TEMPLATES) -> Environment:
    """Return the environment of the templates in `folder`, which may use those of this package."""
    return Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        auto_reload=False,
        finalize=_visible,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )


def render_page(template: Path, **values: Any) -> str:
    """Return the whole HTML document of a template that extends page.html; any browser opens it offline."""
    page = environment(template.parent).get_template(template.name)
    text = page.render({"policy": CONTENT_SECURITY_POLICY, "subtitle": ""} | values)
    return escape_controls(text) + "\n"  # filters such as `join` pass by `_visible`


def render_block(macro: str, *values: Any, **options: Any) -> Markup:
    """Return the markup of a macro in blocks.html."""
    markup: Markup = getattr(environment().get_template("blocks.html").module, macro)(*values, **options)
    return markup


def _visible(value: Any) -> Any:
    """Return text without hidden characters; markup is returned unchanged, and None is empty."""
    if hasattr(value, "__html__"):
        return value
    return "" if value is None else escape_controls(str(value))

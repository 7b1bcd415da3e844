"""Text from files, made visible before a person sees it: characters that control a terminal are escaped.

A file name or a tensor name may contain an escape sequence that clears the screen, or a right-to-left
override that makes `gpj.exe` look like `exe.jpg`. All that is printed passes through here, and all reports.
"""

from __future__ import annotations

import re

# C0 and C1 control characters, half characters (which cannot be encoded), line separators, and the marks that
# change the direction of the text around them (https://unicode.org/reports/tr9/).
_HIDDEN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL = re.compile(f"[{_HIDDEN}]")
_CONTROL_OR_LINE = re.compile(f"[\t\n{_HIDDEN}]")


def escape_controls(text: str) -> str:
    """Return text with its control characters as escapes such as `\\x1b`; line breaks and tabs stay."""
    return _CONTROL.sub(_escape, text)


def escape_name(name: str) -> str:
    """Return a name, or other text for one line, with control characters and line breaks as escapes."""
    return _CONTROL_OR_LINE.sub(_escape, name)


def _escape(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]


def escape_json_controls(text: str) -> str:
    """Return JSON text with these characters as JSON escapes, so that it has the same value."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)

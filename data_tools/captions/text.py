"""Decode caption files, and clean captions to one line; each change is noted."""

from __future__ import annotations

import codecs
import re
import unicodedata

from data_tools.captions.lines import JOINED
from lorakit.core import prompt_syntax
from lorakit.core.errors import ConfigError, DataError

UNESCAPED = "caption_parentheses_unescaped"
ANSWER_CLEANED = "answer_cleaned"
MOJIBAKE = "caption_wrong_encoding"
# Escape sequences of terminals (ECMA-48): control sequences, strings such as a window title, and single ones.
_TERMINAL_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[ -/]*[0-~]?"
)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MIN_ZEROS = 0.4  # of every other byte, from which text is UTF-16 without a byte order mark


def decode_text(data: bytes, where: str, encoding: str = "utf-8") -> str:
    """Decode the text of a file without its byte order mark; a byte that does not fit is a `DataError`.

    Each file decides for itself: by its byte order mark, as UTF-16 by its zeros, else as UTF-8. `encoding` is
    that of files which are none of these, so that a folder may hold both.
    """
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        remedy = "use utf-8, utf-16, cp1252, shift_jis, ..."
        raise ConfigError(
            f"unknown encoding {encoding!r}", where="caption-encoding", remedy=remedy
        ) from error
    own = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), _utf_16_by_zeros(data))
    try:
        return data.decode(own or "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if own is None and codecs.lookup(encoding).name != "utf-8":
            return _decode_as(data, where, encoding)
        message = f"byte {error.start} (0x{data[error.start]:02x}) is not {own or encoding}"
        remedy = "save the file as UTF-8, or give --caption-encoding cp1252 (or another)"
        raise DataError(message, where=where, remedy=remedy) from error


def _decode_as(data: bytes, where: str, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        message = f"byte {error.start} (0x{data[error.start]:02x}) is neither UTF-8 nor {encoding}"
        remedy = "save the file as UTF-8, or give another --caption-encoding"
        raise DataError(message, where=where, remedy=remedy) from error


def _utf_16_by_zeros(data: bytes) -> str | None:
    """Return the UTF-16 of text without a byte order mark: every other byte of Latin letters is zero."""
    pairs = len(data) // 2
    if not pairs or len(data) % 2:
        return None
    first, second = data[0::2].count(0) / pairs, data[1::2].count(0) / pairs
    if max(first, second) < _MIN_ZEROS or min(first, second) > 0:
        return None
    return "utf-16-le" if second > first else "utf-16-be"


def is_mojibake(text: str) -> bool:
    """Return True for UTF-8 that was read as a Western encoding, such as "cafÃ©" for "café"."""
    return _repaired(text) != text


def _repaired(text: str) -> str:
    for encoding in ("cp1252", "latin-1"):
        try:
            return text.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
    return text


def clean_caption(text: str, name: str) -> tuple[str, list[str]]:
    r"""Return one line of text and notes: lines are joined by spaces, control characters removed.

    `\(` and `\)`, the escaped parentheses of booru tags, become `(` and `)`.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text.strip(), []  # nothing below applies
    notes = []
    if prompt_syntax.has_escapes(text):
        text = prompt_syntax.unescape_parentheses(text)
        notes.append(f"{UNESCAPED}: \\( and \\) of {name} read as ( and )")
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    lines = [line for line in lines if line]
    if len(lines) > 1:
        notes.append(f"{JOINED}: {len(lines)} lines of {name} joined into one")
    joined = " ".join(lines).replace("\t", " ")
    kept = "".join(letter for letter in joined if unicodedata.category(letter) != "Cc")
    if is_mojibake(joined):
        notes.append(f"{MOJIBAKE}: {kept[:60]!r} of {name} looks like {_repaired(joined)[:60]!r}")
    if kept != joined:
        removed = len(joined) - len(kept)
        notes.append(f"caption_control_characters: {removed} control characters of {name} removed")
    return kept.strip(), notes


def clean_answer(text: str) -> tuple[str, list[str]]:
    """Return a model's answer as one line, and a note if more than spaces and lines was changed.

    Terminal sequences, control characters, marks that change the direction of text, half characters and
    private ones are removed; escaped parentheses become plain ones.
    """
    visible = _TERMINAL_SEQUENCE.sub("", text)
    visible = "".join(letter for letter in visible if letter in "\t\r\n" or not _is_hidden(letter))
    line, _ = clean_caption(visible, "the answer")
    removed = len(text) - len(visible)
    return line, [
        f"{ANSWER_CLEANED}: {removed} control characters of the model's answer removed"
    ] if removed else []


def _is_hidden(letter: str) -> bool:
    """Return True for a character that is not text; joiners of emoji and of Indic scripts are text."""
    is_format = unicodedata.category(letter) == "Cf" and letter not in "\u200c\u200d"
    is_tag = "\U000e0020" <= letter <= "\U000e007f"  # in the flags of Scotland, Wales and England
    return unicodedata.category(letter) in ("Cc", "Cs", "Co") or (is_format and not is_tag)

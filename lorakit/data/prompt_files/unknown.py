"""Files that hold no prompts: binaries, markup, programs, and other text that would be read as prompts."""

from __future__ import annotations

import re

from lorakit.core import input_files
from lorakit.core.errors import DataError
from lorakit.data.prompt_files.row import PromptText

_SIGNATURES = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"RIFF", "a WebP image or another RIFF file"),
    (b"GIF8", "a GIF image"),
    (b"PK\x03\x04", "a ZIP archive, such as a spreadsheet or document"),
    (b"%PDF", "a PDF document"),
    (b"{\\rtf", "a document in Rich Text Format"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"PAR1", "a Parquet table"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0", "an old document of Microsoft Office"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x04", "a pickle"),
)
_MARKUP = re.compile(
    r"<!doctype|<\?xml|<!--|</?(?:html|head|body|div|p|span|table|tr|td|ul|ol|li|h[1-6]|script|style|br|svg|a|b|i)"
    r"(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"#!.*|import [\w.]+(?: as \w+)?(?:, ?[\w.]+)*;?"
    r"|from [\w.]+ import .+|(?:async )?def \w+\(.*|class \w+.*:"
    r"|if __name__ .*|(?:const|let|var) \w+ *=.*|function \w*\(.*|#include.*|package \w+;?|\w+ *= *\w+\(.*\)"
    r"|print\(.*\)|\w+(?:\.\w+)+\(.*\)",
)
_PYTHON_LIST = re.compile(r"\w+ *(?::[^=]+)?= *[\[({].*|\[ *'.*|\[ *f?\".*\" *for .*")
_SETTING = re.compile(
    r"(?:(?:negative|positive)[ _]?)?(?:prompt|seed|steps|width|height|negative)\s*[=:]\s*\S.*", re.I
)
_FENCE = re.compile(r"```|~~~")
_REMEDY = "give a prompt file: one prompt a line, or JSONL, JSON, YAML, TOML, CSV or TSV"


def read_prompt_text(source: str) -> str:
    """Read a file as text. Raises DataError for a binary, with its kind, and for text that is not UTF-8."""
    data = input_files.read_bytes(source)
    kind = next((kind for start, kind in _SIGNATURES if data.startswith(start)), None)
    if kind:
        raise DataError(f"{kind}, not a prompt file", where=source, remedy=_REMEDY)
    return input_files.decode_text(data, source)


def refuse_unknown(source: PromptText) -> None:
    """Raise DataError, with the line, for the lines of markup and programs."""
    code = []
    for number, line in enumerate(source.text.split("\n"), 1):
        stripped = line.strip()
        if _MARKUP.search(stripped):
            raise _refused("markup such as HTML", source, number, stripped)
        if _FENCE.match(stripped):
            raise _refused("a code block of Markdown", source, number, stripped)
        if _SETTING.fullmatch(stripped):
            raise _refused("a setting", source, number, stripped)
        if _CODE.fullmatch(stripped) or _PYTHON_LIST.fullmatch(stripped):
            code.append((number, stripped))
    if code:
        raise _refused("the code of a program", source, *code[0])


def _refused(kind: str, source: PromptText, number: int, line: str) -> DataError:
    message = f"{line[:60]!r} is {kind}, not a prompt"
    return DataError(message, where=f"{source.where}, line {number}", remedy=_REMEDY)

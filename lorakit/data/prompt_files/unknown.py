"""Files that hold no prompts: binaries, markup, programs, and other text that would be read as prompts."""

from __future__ import annotations

import re

from lorakit.core import input_files
from lorakit.core.errors import DataError
from lorakit.data.prompt_files.row import PromptText
from lorakit.imaging import file_kinds

_TEXT_SIGNATURES = ((b"%PDF-", "a PDF document"), (b"{\\rtf", "a document in Rich Text Format"))
_BINARY_SIGNATURES = ((b"PAR1", "a Parquet table"), (b"\x80\x02", "a pickle"), (b"\x80\x04", "a pickle"))
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
    if kind := _kind_name(data):
        raise DataError(f"{kind}, not a prompt file", where=source, remedy=_REMEDY)
    return input_files.decode_text(data, source)


def _kind_name(data: bytes) -> str | None:
    """Return the kind of a file that holds no prompts; a prompt may start like the signature of a binary."""
    signatures = _TEXT_SIGNATURES if _is_text(data) else (*_TEXT_SIGNATURES, *_BINARY_SIGNATURES)
    named = next((kind for start, kind in signatures if data.startswith(start)), None)
    return named or (None if _is_text(data) else file_kinds.kind_name(data))


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
        return b"\0" not in data[:4096]
    except UnicodeDecodeError:
        return False


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

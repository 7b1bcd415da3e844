"""Texts that are longer than a text encoder reads, as diffusers' pipelines report them: one warning each."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

_MARK = "input was truncated because"
_MAX_EXAMPLES, _MAX_LENGTH = 3, 40


class _Collector(logging.Filter):
    """Keeps the words that were cut off, once each, and their warnings out of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.words: dict[str, None] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if _MARK not in message:
            return True
        words = message.rpartition("tokens: ")[2].strip("[]'\" ")
        self.words.setdefault(words)
        return False


@contextlib.contextmanager
def collect_truncations() -> Iterator[Mapping[str, None]]:
    """Collect the words that text encoders do not read, instead of a printed warning for each text."""
    collector, handlers = _Collector(), list(logging.getLogger("diffusers").handlers)
    for handler in handlers:
        handler.addFilter(collector)
    try:
        yield collector.words
    finally:
        for handler in handlers:
            handler.removeFilter(collector)


def truncation_summary(words: Mapping[str, None]) -> str | None:
    """Return one line for all texts that were cut off, or None."""
    if not words:
        return None
    examples = ", ".join(repr(text[:_MAX_LENGTH]) for text in list(words)[:_MAX_EXAMPLES])
    more = f" and {len(words) - _MAX_EXAMPLES} more" if len(words) > _MAX_EXAMPLES else ""
    return f"captions longer than the text encoder reads; it ignores {examples}{more}"

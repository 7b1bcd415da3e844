from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from lorakit.models.truncated_texts import collect_truncations, truncation_summary
from tests import tiny
from tests.models.families.common import family_of

LONG = "a dog " + "and a cat " * 60


class Printed(logging.Handler):
    """Keeps the messages that would be printed."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def printed() -> Iterator[list[str]]:
    """What diffusers prints."""
    handler, logger = Printed(), logging.getLogger("diffusers")
    logger.addHandler(handler)
    yield handler.messages
    logger.removeHandler(handler)


def test_texts_that_are_cut_off_are_one_line(printed):
    """With the warnings of a real pipeline, which would print one for each text."""
    pipe, family = tiny.tiny_pipeline("sd15"), family_of("sd15")
    with collect_truncations() as words:
        family.encode_text(pipe, [LONG, LONG + "on a red chair", "a dog"], (64, 64))
        logging.getLogger("diffusers").warning("something else")
    assert len(words) == 2
    assert any("red chair" in text for text in words)
    assert printed == ["something else"]
    summary = truncation_summary(words)
    assert summary is not None
    assert summary.startswith("captions longer than the text encoder reads; it ignores '")
    family.encode_text(pipe, [LONG], (64, 64))
    assert "truncated" in printed[-1]  # as before


def test_many_texts_are_summed_up():
    words = {f"words {number}": None for number in range(9)}
    assert str(truncation_summary(words)).endswith("'words 2' and 6 more")
    assert truncation_summary({}) is None

"""Whether text in a picture is spelt right: what a prompt quotes, against what an OCR engine reads.

The engine is Tesseract's program, when it is installed; nothing is sent anywhere.
"""

from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt

if TYPE_CHECKING:
    from PIL import Image

TESSERACT = "tesseract"
TIMEOUT_S = 60.0
MIN_OCR_SIDE = 1024  # small pictures are enlarged to it: the engine wants letters of 20 pixels or more
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»")


class OcrScorer:
    """The share of the quoted text that is read in the picture; NaN for prompts that quote nothing."""

    name = "ocr"

    def __init__(self, language: str | None = None) -> None:
        if shutil.which(TESSERACT) is None:
            remedy = "install it (Debian: apt-get install tesseract-ocr), or leave this score out"
            raise ConfigError("no OCR engine is installed", where="--also ocr", remedy=remedy)
        self.language = language or "eng"
        self.version = _run_tesseract(["--version"], b"").splitlines()[0]
        if self.language not in _run_tesseract(["--list-langs"], b"").split():
            raise ConfigError(f"Tesseract has no language {self.language!r}", where="--also ocr")

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """From 0, nothing right, to 1, every letter."""
        wanted = [quoted_text(prompt.prompt) for prompt in prompts]
        return [
            text_accuracy(text, self.read(image)) if text else math.nan
            for text, image in zip(wanted, images, strict=True)
        ]

    def read(self, image: Image.Image) -> str:
        """All text that the engine finds, in any place."""
        factor = max(1, math.ceil(MIN_OCR_SIDE / max(image.size)))
        buffer = io.BytesIO()
        image.convert("RGB").resize((image.width * factor, image.height * factor)).save(buffer, "PNG")
        return _run_tesseract(["stdin", "stdout", "-l", self.language, "--psm", "11"], buffer.getvalue())

    def describe(self) -> dict[str, Any]:
        metric = "1 - edit distance / length of the quoted text, at its best place in what was read"
        return {"metric": metric, "engine": self.version, "language": self.language}


def quoted_text(prompt: str) -> str:
    """The text that a prompt wants written, all quotations in order; empty for none."""
    return " ".join(next(part for part in found if part) for found in _QUOTED.findall(prompt))


def text_accuracy(wanted: str, read: str) -> float:
    """1 - edit distance / length, with case and blanks folded, at the best place of `read`: text around it
    does not count."""
    target, found = (" ".join(text.casefold().split()) for text in (wanted, read))
    if not target:
        raise ValueError("no text to look for")
    row = [0] * (len(found) + 1)  # the match may begin anywhere
    for number, letter in enumerate(target, 1):
        above, row = row, [number]
        for place, other in enumerate(found, 1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (letter != other)))
    return 1 - min(row) / len(target)  # and end anywhere


def _run_tesseract(arguments: list[str], given: bytes) -> str:
    try:
        done = subprocess.run(
            [TESSERACT, *arguments], input=given, capture_output=True, timeout=TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{TESSERACT} failed: {error}", where="--also ocr") from error
    return done.stdout.decode("utf-8", "replace")

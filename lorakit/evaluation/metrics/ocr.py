"""Accuracy of text in images: the text that a prompt quotes, compared with the text that OCR reads.

The engine is the Tesseract program on this machine; nothing is sent anywhere.
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
MIN_OCR_SIDE = 1024  # smaller images are enlarged, because the engine needs letters of 20 pixels or more
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»")


class OcrScorer:
    """Share of the quoted text that is read in the image; NaN for prompts that quote nothing."""

    name = "ocr_accuracy"

    def __init__(self, language: str | None = None) -> None:
        if shutil.which(TESSERACT) is None:
            remedy = "install Tesseract (Debian: apt-get install tesseract-ocr), or leave out this metric"
            raise ConfigError("no OCR engine is installed", where="--metric ocr_accuracy", remedy=remedy)
        self.language = language or "eng"
        self.version = _run_tesseract(["--version"], b"").splitlines()[0]
        if self.language not in _run_tesseract(["--list-langs"], b"").split():
            raise ConfigError(f"Tesseract has no language {self.language!r}", where="--metric ocr_accuracy")

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """Return a share from 0 (nothing is right) to 1 (every letter is right) for each image (N,)."""
        expected_texts = [quoted_text(prompt.prompt) for prompt in prompts]
        return [
            text_accuracy(text, self.recognize(image)) if text else math.nan
            for text, image in zip(expected_texts, images, strict=True)
        ]

    def recognize(self, image: Image.Image) -> str:
        """Return all text that the engine finds in the image."""
        factor = max(1, math.ceil(MIN_OCR_SIDE / max(image.size)))
        buffer = io.BytesIO()
        image.convert("RGB").resize((image.width * factor, image.height * factor)).save(buffer, "PNG")
        return _run_tesseract(["stdin", "stdout", "-l", self.language, "--psm", "11"], buffer.getvalue())

    def describe(self) -> dict[str, Any]:
        """Return the settings that the scores depend on, as JSON."""
        metric = "1 - edit distance / length of the quoted text, at its best place in the recognized text"
        return {"metric": metric, "engine": self.version, "language": self.language}


def quoted_text(prompt: str) -> str:
    """Return the text that a prompt quotes, all quotations in order; empty if there are none."""
    return " ".join(next(part for part in groups if part) for groups in _QUOTED.findall(prompt))


def text_accuracy(expected: str, recognized: str) -> float:
    """Return 1 - edit distance / length at the best place of the recognized text.

    Case and white space are ignored, and so is the text around that place.
    """
    target, text = (" ".join(part.casefold().split()) for part in (expected, recognized))
    if not target:
        raise ValueError("the expected text is empty")
    row = [0] * (len(text) + 1)  # the match may start anywhere
    for number, letter in enumerate(target, 1):
        above, row = row, [number]
        for place, other in enumerate(text, 1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (letter != other)))
    return 1 - min(row) / len(target)  # and end anywhere


def _run_tesseract(arguments: list[str], stdin: bytes) -> str:
    try:
        process = subprocess.run(
            [TESSERACT, *arguments], input=stdin, capture_output=True, timeout=TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{TESSERACT} failed: {error}", where="--metric ocr_accuracy") from error
    return process.stdout.decode("utf-8", "replace")

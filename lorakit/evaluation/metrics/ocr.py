"""Accuracy of text in images: the text that a prompt quotes, compared with the text that OCR reads.

Nothing is sent anywhere: the readers (`ocr_readers`) run on this machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorakit.data.prompts import Prompt
from lorakit.evaluation.metrics.ocr_readers import TextReader, load_reader

if TYPE_CHECKING:
    from PIL import Image

_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»")


class OcrScorer:
    """Share of the quoted text that is read in the image; NaN for prompts that quote nothing."""

    name = "ocr_accuracy"

    def __init__(self, reader: TextReader) -> None:
        self.reader = reader

    @classmethod
    def load(cls, reader: str | None) -> OcrScorer:
        """Load a reader: rapidocr (None), or `tesseract`, perhaps with `:LANGUAGE`."""
        return cls(load_reader(reader))

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """Return a share from 0 (nothing is right) to 1 (every letter is right) for each image (N,)."""
        expected_texts = [quoted_text(prompt.prompt) for prompt in prompts]
        return [
            text_accuracy(text, self.reader.read(image.convert("RGB"))) if text else math.nan
            for text, image in zip(expected_texts, images, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """Return the settings that the scores depend on, as JSON."""
        metric = "1 - edit distance / length of the quoted text, at its best place in the recognized text"
        return {"metric": metric, **self.reader.describe()}


def quoted_text(prompt: str) -> str:
    """Return the text that a prompt quotes, all quotations in order; empty if there are none."""
    return " ".join(next(part for part in groups if part) for groups in _QUOTED.findall(prompt))


def text_accuracy(expected: str, recognized: str) -> float:
    """Return 1 - edit distance / length at the best place of the recognized text.

    Case and white space are ignored, and so is the text around that place.
    """
    target, text = ("".join(part.casefold().split()) for part in (expected, recognized))
    if not target:
        raise ValueError("the expected text is empty")
    row = [0] * (len(text) + 1)  # the match may start anywhere
    for number, letter in enumerate(target, 1):
        above, row = row, [number]
        for place, other in enumerate(text, 1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (letter != other)))
    return 1 - min(row) / len(target)  # and end anywhere

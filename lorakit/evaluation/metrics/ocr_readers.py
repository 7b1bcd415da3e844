"""Programs that read text in an image: rapidocr (a package with its models), and Tesseract.

Both give the lines in reading order. Their models are on this machine; nothing is downloaded.
"""

from __future__ import annotations

import io
import math
import shutil
import subprocess
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorakit.core.checksums import sha256_bytes, sha256_file
from lorakit.core.errors import ConfigError
from lorakit.models.offline_judges import OCR_INSTALL

if TYPE_CHECKING:
    from PIL import Image

RAPIDOCR, TESSERACT = "rapidocr", "tesseract"
MODEL_FILES = {
    "Det": "PP-OCRv6_det_small.onnx",
    "Cls": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "Rec": "PP-OCRv6_rec_small.onnx",
}
"""The models in rapidocr's package: finding text, turning it upright, reading it."""
MIN_SIDE = 1024  # smaller images are enlarged for Tesseract, which needs letters of 20 pixels or more
TIMEOUT_S = 60.0
_OPTION = "--metric ocr_accuracy"


class TextReader(Protocol):
    """Reads the text of an image."""

    def read(self, image: Image.Image) -> str:
        """Return all text in the image (RGB)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return engine and settings, as JSON."""
        ...


def load_reader(name: str | None) -> TextReader:
    """Load rapidocr (None), `tesseract` or `tesseract:LANGUAGE`; ConfigError if it is missing."""
    engine, _, language = (name or RAPIDOCR).partition(":")
    if engine == TESSERACT:
        return TesseractReader(language or "eng")
    if engine == RAPIDOCR and not language:
        return RapidOcrReader()
    remedy = f"use {_OPTION}, or {_OPTION}=tesseract, or with a language {_OPTION}=tesseract:deu"
    raise ConfigError(f"there is no OCR engine {name!r}", where=f"{_OPTION}={name}", remedy=remedy)


class RapidOcrReader:
    """PP-OCR through rapidocr and onnxruntime. It reads Latin and Chinese script, also tilted."""

    def __init__(self) -> None:
        folder = _rapidocr_models()
        files = {part: folder / name for part, name in MODEL_FILES.items()}
        if absent := [file.name for file in files.values() if not file.is_file()]:
            message = f"the installed rapidocr has no {', '.join(absent)}"
            raise ConfigError(message, where=_OPTION, remedy=f"install the tested version: {OCR_INSTALL}")
        from rapidocr import RapidOCR

        # paths of the models, because rapidocr downloads what it does not find
        paths = {f"{part}.model_path": str(file) for part, file in files.items()}
        self.engine = RapidOCR(params={"Global.log_level": "error", **paths})
        hashes = [sha256_file(file) for file in files.values()]
        self.weights_sha256 = sha256_bytes("".join(hashes).encode())

    def read(self, image: Image.Image) -> str:
        """Return all text in the image, line by line."""
        result = self.engine(image)  # which enlarges small images itself
        texts, boxes = getattr(result, "txts", None), getattr(result, "boxes", None)
        if not texts or boxes is None:
            return ""
        order = reading_order(np.asarray(boxes, dtype=np.float64))
        return " ".join(texts[index] for index in order)

    def describe(self) -> dict[str, Any]:
        """Return engine, hash of its models, and settings, as JSON."""
        version = metadata.version(RAPIDOCR)
        return {
            "engine": f"{RAPIDOCR} {version}",
            "weights_sha256": self.weights_sha256,
        }


class TesseractReader:
    """The Tesseract program."""

    def __init__(self, language: str) -> None:
        if shutil.which(TESSERACT) is None:
            remedy = (
                f"install Tesseract (Debian: apt-get install tesseract-ocr), or use {_OPTION}: {OCR_INSTALL}"
            )
            raise ConfigError("Tesseract is not installed", where=f"{_OPTION}={TESSERACT}", remedy=remedy)
        self.language = language
        self.version = _run_tesseract(["--version"], b"").splitlines()[0]
        if language not in _run_tesseract(["--list-langs"], b"").split():
            raise ConfigError(f"Tesseract has no language {language!r}", where=f"{_OPTION}={TESSERACT}")

    def read(self, image: Image.Image) -> str:
        """Return all text in the image."""
        factor = max(1, math.ceil(MIN_SIDE / max(image.size)))
        buffer = io.BytesIO()
        image.resize((image.width * factor, image.height * factor)).save(buffer, "PNG")
        return _run_tesseract(["stdin", "stdout", "-l", self.language, "--psm", "11"], buffer.getvalue())

    def describe(self) -> dict[str, Any]:
        """Return engine and language, as JSON."""
        return {"engine": self.version, "language": self.language}


def reading_order(boxes: NDArray[np.float64]) -> list[int]:
    """Return the indices of text boxes (N, 4, 2), corners from the top left on, line by line.

    Lines follow the median tilt of the boxes; of tilted text, the last word of a line is often the highest.
    """
    edges = boxes[:, 1] - boxes[:, 0]
    tilt = float(np.median(np.arctan2(edges[:, 1], edges[:, 0])))
    turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    centers = boxes.mean(1) @ turn  # (N, 2), as if the text were horizontal
    heights = np.linalg.norm(boxes[:, 3] - boxes[:, 0], axis=1)
    lines: list[list[int]] = []
    for index in np.argsort(centers[:, 1]).tolist():
        last = lines[-1] if lines else []
        middle = float(np.mean(centers[last, 1])) if last else -math.inf
        if centers[index, 1] - middle < heights[index] / 2:
            last.append(index)
        else:
            lines.append([index])
    return [index for line in lines for index in sorted(line, key=lambda one: centers[one, 0])]


def _rapidocr_models() -> Path:
    """Return the folder of rapidocr's models; ConfigError if it or onnxruntime is not installed."""
    absent = [name for name in (RAPIDOCR, "onnxruntime") if util.find_spec(name) is None]
    if absent:
        remedy = f"{OCR_INSTALL}; or use {_OPTION}=tesseract, or leave out this metric"
        raise ConfigError(
            f"no OCR engine is installed ({' and '.join(absent)})", where=_OPTION, remedy=remedy
        )
    spec = util.find_spec(RAPIDOCR)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models"


def _run_tesseract(arguments: list[str], stdin: bytes) -> str:
    try:
        process = subprocess.run(
            [TESSERACT, *arguments], input=stdin, capture_output=True, timeout=TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{TESSERACT} failed: {error}", where=f"{_OPTION}={TESSERACT}") from error
    return process.stdout.decode("utf-8", "replace")

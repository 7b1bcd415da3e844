"""Text in images: real readings of rendered text, the order of tilted lines, and what is missing."""

from __future__ import annotations

import math
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt
from lorakit.evaluation.metrics import ocr, ocr_readers
from lorakit.evaluation.metrics.extra_metrics import load_prompt_scorer
from tests.benchmarks import evaluation_ocr


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign that says "OPEN late"', "OPEN late"),
        ("a shop called “Rosa” beside „Blau“", "Rosa Blau"),
        ("it's a dog's dinner", ""),
        ('two: "one" and "two"', "one two"),
    ],
)
def test_the_quoted_text_of_a_prompt_is_extracted(prompt, text):
    assert ocr.quoted_text(prompt) == text


def edit_distance(a: str, b: str) -> int:
    """The recursive definition, for short texts."""
    if not a or not b:
        return len(a) + len(b)
    same = edit_distance(a[:-1], b[:-1]) + (a[-1] != b[-1])
    return min(same, edit_distance(a[:-1], b) + 1, edit_distance(a, b[:-1]) + 1)


@pytest.mark.parametrize(
    ("expected_text", "recognized"),
    [("OPEN", "open"), ("OPEN", "xx 0PEN yy"), ("ca fe", "c fe"), ("abc", ""), ("ab", "ba"), ("50 %", "50%")],
)
def test_accuracy_is_the_best_edit_distance_over_all_places(expected_text, recognized):
    target, text = ("".join(part.casefold().split()) for part in (expected_text, recognized))
    spans = [text[i:j] for i in range(len(text) + 1) for j in range(i, min(len(text), i + 6) + 1)]
    expected = 1 - min(edit_distance(target, span) for span in spans) / len(target)
    assert ocr.text_accuracy(expected_text, recognized) == pytest.approx(expected)


@pytest.mark.parametrize("degrees", [0, 15, -15, 4])
def test_boxes_are_read_line_by_line_along_the_tilt(degrees):
    """Two lines of three words each, turned about the image's middle and listed in any order."""
    words = [(20 + 120 * column, 40 + 50 * line) for line in (0, 1) for column in range(3)]
    corners = np.array([[(0, 0), (90, 0), (90, 30), (0, 30)]], float)
    boxes = np.array(words, float)[:, None] + corners
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned = (boxes - 150) @ turn + 150
    shuffled = [4, 0, 5, 2, 3, 1]
    order = ocr_readers.reading_order(turned[shuffled])
    assert [shuffled[index] for index in order] == [0, 1, 2, 3, 4, 5]


def sign(text: str) -> Image.Image:
    image = Image.new("RGB", (512, 256), "white")
    ImageDraw.Draw(image).text((60, 80), text, fill="black", font=ImageFont.load_default(90))
    return image


@pytest.fixture(scope="module")
def scorer() -> ocr.OcrScorer:
    return ocr.OcrScorer.load(None)


def test_an_image_with_the_text_scores_high_and_another_low(scorer):
    check_readings(scorer)


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="Tesseract is not installed")
def test_tesseract_scores_an_image_with_the_text_high_and_another_low():
    check_readings(ocr.OcrScorer.load("tesseract"))


def check_readings(scorer: ocr.OcrScorer) -> None:
    prompts = [Prompt(n, f'a sign "{t}"', "x") for n, t in (("a", "OPEN"), ("b", "OPEN"))]
    plain = Prompt("c", "a sign", "x")
    values = scorer.score([sign("OPEN"), sign("KLTZ"), sign("OPEN")], [*prompts, plain])
    assert values[0] == pytest.approx(1.0)
    assert values[1] < 0.6
    assert math.isnan(values[2])
    assert scorer.describe()["engine"].startswith(("tesseract", "rapidocr"))


@pytest.mark.parametrize(("text", "condition"), [("Fresh Coffee", "photo"), ("Grand Hotel", "tilted")])
def test_text_over_a_busy_ground_is_read_also_when_it_is_tilted(text, condition, scorer):
    rng = np.random.default_rng(5)
    image = evaluation_ocr.render(text, condition, evaluation_ocr.rendered_ground(384, rng), rng)
    reading = scorer.reader.read(image)
    assert ocr.text_accuracy(text, reading) >= 0.9
    assert ocr.text_accuracy("Weather Report", reading) < 0.6


def test_reading_opens_no_connection(monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    reader = ocr_readers.load_reader(None)
    assert "OPEN" in reader.read(sign("OPEN"))
    assert len(reader.describe()["weights_sha256"]) == 64


@pytest.mark.parametrize("absent", ["rapidocr", "onnxruntime"])
def test_without_an_ocr_engine_the_error_says_how_to_install_one(absent, monkeypatch):
    find = ocr_readers.util.find_spec
    monkeypatch.setattr(ocr_readers.util, "find_spec", lambda name: None if name == absent else find(name))
    with pytest.raises(ConfigError, match="no OCR engine") as caught:
        load_prompt_scorer("ocr_accuracy")
    assert "lorakit[ocr]" in str(caught.value)


def test_another_version_without_the_tested_models_is_an_error(monkeypatch):
    """It would download the models that it does not have."""
    monkeypatch.setitem(ocr_readers.MODEL_FILES, "Rec", "other.onnx")
    with pytest.raises(ConfigError, match=r"has no other\.onnx"):
        load_prompt_scorer("ocr_accuracy")


@pytest.mark.parametrize("name", ["deu", "easyocr", "rapidocr:deu"])
def test_an_unknown_engine_is_an_error_that_names_the_known_ones(name):
    with pytest.raises(ConfigError, match="no OCR engine") as caught:
        load_prompt_scorer(f"ocr_accuracy={name}")
    assert "tesseract" in str(caught.value)


def test_without_tesseract_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(ocr_readers.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="Tesseract is not installed") as caught:
        load_prompt_scorer("ocr_accuracy=tesseract")
    assert "apt-get" in str(caught.value)

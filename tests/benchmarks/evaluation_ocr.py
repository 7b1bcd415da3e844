"""Accuracy of the OCR readers on rendered text: on plain grounds, over photos, and tilted over photos.

    python -m tests.benchmarks.evaluation_ocr [--photos FOLDER] [--readers rapidocr tesseract]

Every text is perfectly legible, so a sound reader scores nearly 1: what is missing would be blamed on the
generator. Without --photos the grounds are rendered: blurred noise with edges, as busy as a photo.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from lorakit.evaluation.metrics.ocr import text_accuracy
from lorakit.evaluation.metrics.ocr_readers import TextReader, load_reader
from lorakit.imaging import decode

GOAL = 0.95
MAX_TILT = 15.0
SIDES = (512, 768, 1024)
TEXTS = (
    "OPEN",
    "Bakery",
    "HAPPY BIRTHDAY",
    "Fresh Coffee",
    "No Parking",
    "Grand Hotel",
    "lorakit",
    "Welcome Home",
    "SALE 50%",
    "Room 237",
    "Good Morning Paris",
    "Flowers & Plants",
)
CONDITIONS = ("plain", "photo", "tilted")
_COLORS = (
    ("white", "black"),
    ("black", "white"),
    ("yellow", "navy"),
    ("red", "white"),
)  # letters and outline


def rendered_ground(side: int, rng: np.random.Generator) -> Image.Image:
    """Return a busy ground: noise on several scales, and rectangles with edges."""
    total = np.zeros((side, side, 3))
    for cells in (4, 16, 64):
        noise = rng.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        total += np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC), float)
    ground = Image.fromarray((total / 3).astype(np.uint8))
    canvas = ImageDraw.Draw(ground)
    for _ in range(12):
        x, y = rng.integers(0, side, 2).tolist()
        width, height = rng.integers(side // 16, side // 4, 2).tolist()
        color = tuple(rng.integers(0, 255, 3).tolist())
        canvas.rectangle((x, y, x + width, y + height), fill=color)
    return ground.filter(ImageFilter.GaussianBlur(side / 400))


def photo_ground(photo: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """Return a random square of a photo."""
    part = int(min(photo.size) * rng.uniform(0.7, 1.0))
    left = int(rng.integers(0, photo.width - part + 1))
    top = int(rng.integers(0, photo.height - part + 1))
    return photo.crop((left, top, left + part, top + part)).resize((side, side))


def text_layer(text: str, side: int, rng: np.random.Generator) -> Image.Image:
    """Return the text on a transparent ground, letters of 1/14 to 1/7 of the side, with an outline."""
    fill, outline = _COLORS[int(rng.integers(len(_COLORS)))]
    size = side / rng.uniform(7, 14)
    measure = ImageDraw.Draw(Image.new("RGB", (8, 8)))
    while True:
        font = ImageFont.load_default(size)
        left, top, right, bottom = measure.textbbox((0, 0), text, font=font)
        if right - left < 0.8 * side:
            break
        size *= 0.9
    layer = Image.new("RGBA", (side, side))
    x = rng.uniform(0.08 * side, 0.92 * side - (right - left))
    y = rng.uniform(0.3 * side, 0.7 * side - (bottom - top))
    ImageDraw.Draw(layer).text(
        (x, y), text, font=font, fill=fill, stroke_width=max(1, round(size / 14)), stroke_fill=outline
    )
    return layer


def render(text: str, condition: str, ground: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return an image that shows the text under a condition."""
    side = ground.width
    layer = text_layer(text, side, rng)
    if condition == "plain":
        color = tuple(rng.integers(60, 220, 3).tolist())
        ground = Image.new("RGB", (side, side), color)
    if condition == "tilted":
        angle = float(rng.uniform(MAX_TILT / 3, MAX_TILT) * rng.choice((-1, 1)))
        layer = layer.rotate(angle, Image.Resampling.BICUBIC)
    ground = ground.convert("RGB")
    ground.paste(layer, mask=layer)
    return ground


def measure(reader: TextReader, photos: Sequence[Image.Image] = (), rounds: int = 2) -> list[dict[str, Any]]:
    """Return one row for each condition: mean accuracy and the texts that were read wrongly."""
    rows = []
    for number, condition in enumerate(CONDITIONS):
        rng = np.random.default_rng(number)
        values, wrong = [], []
        for index in range(rounds * len(TEXTS)):
            text, side = TEXTS[index % len(TEXTS)], SIDES[index % len(SIDES)]
            ground = (
                photo_ground(photos[index % len(photos)], side, rng) if photos else rendered_ground(side, rng)
            )
            accuracy = text_accuracy(text, reader.read(render(text, condition, ground, rng)))
            values.append(accuracy)
            wrong += [f"{text} ({accuracy:.2f})"] if accuracy < 1 else []
        rows.append({"condition": condition, "accuracy": float(np.mean(values)), "wrong": wrong})
    return rows


def passes(row: dict[str, Any]) -> bool:
    """Return True if a condition reaches the goal."""
    return bool(row["accuracy"] >= GOAL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evaluation_ocr")
    parser.add_argument("--photos", type=Path, help="a folder of photos, searched with its subfolders")
    parser.add_argument("--readers", nargs="+", default=["rapidocr"], help="rapidocr, tesseract")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    files = sorted(arguments.photos.rglob("*.jpg")) if arguments.photos else []
    photos = [decode.decode_image(file) for file in files]
    results = {name: measure(load_reader(name), photos, arguments.rounds) for name in arguments.readers}
    print(json.dumps({"photos": len(photos), **results}, indent=2))
    return 0 if all(map(passes, results[arguments.readers[0]])) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""The record inside generated images: read back by lorakit and other programs; pixels unchanged."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.data.prompt_files.infotext import parse_infotext
from lorakit.evaluation.image_prompts.generators import read_prompt
from lorakit.imaging import inspect_image, provenance, video
from lorakit.imaging.image_texts import read_image_texts
from lorakit.imaging.provenance import AdapterUse, ImageProvenance

RECORD = ImageProvenance(
    prompt="a photo of sks dog, on a beach",
    negative="blurry, text",
    seed=7,
    num_inference_steps=20,
    guidance_scale=7.5,
    width=24,
    height=16,
    sampler="Euler a",
    family="sdxl",
    base_hash="ab" * 32,
    base="org/model@" + "0" * 40,
    adapters=(AdapterUse("cd" * 32, 0.8, step=400),),
)
TEXTS = [
    "a plain prompt",
    "ein Hund, «groß»",
    '犬の写真: "quoted", {braces}',
    "two\nlines <lora:x:1>",
    "a\0b",
]


def noise(width: int = 24, height: int = 16) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_png(path: Path, record: ImageProvenance | None) -> Path:
    return storage.save_image(path, noise(), pnginfo=provenance.png_info(record))


@pytest.mark.parametrize("text", TEXTS)
def test_prompt_and_seed_are_read_back_from_a_png_as_from_files_of_a1111(text, tmp_path):
    file = write_png(tmp_path / "a.png", replace(RECORD, prompt=text, negative=text))
    read = read_prompt(read_image_texts(file))
    expected = " ".join(text.replace("\0", "").split())
    assert read is not None
    assert (read.prompt, read.negative, read.seed) == (expected, expected, 7)
    record = inspect_image.inspect_image(file)["record"]
    assert record["prompt"] == text
    assert record["adapters"] == [{"sha256": "cd" * 32, "strength": 0.8, "step": 400}]


def test_the_settings_are_those_that_galleries_look_for():
    infotext = parse_infotext(RECORD.infotext())
    assert infotext is not None
    assert infotext.settings == {
        "steps": "20",
        "sampler": "Euler a",
        "cfg scale": "7.5",
        "seed": "7",
        "size": "24x16",
        "model hash": "ab" * 5,
        "model": RECORD.base,
        "version": f"lorakit {RECORD.version}",
        "hashes": json.dumps({"model": "ab" * 5, "lora:adapter-1": "cd" * 5}),
    }


def test_what_is_not_known_is_left_out():
    record = replace(RECORD, guidance_scale=None, base=None, negative="", adapters=(AdapterUse(step=3),))
    assert not {"CFG scale", "Model:", "Negative", "lora:"} & set(record.infotext().split())
    assert "CFG" not in record.infotext()
    assert {"base", "guidance_scale"}.isdisjoint(record.to_json())


def test_a_record_changes_no_pixel_and_equal_records_give_equal_files(tmp_path):
    first, second = (write_png(tmp_path / name, RECORD) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()
    assert np.array_equal(np.asarray(Image.open(first)), np.asarray(noise()))
    plain = write_png(tmp_path / "c.png", None)
    assert read_image_texts(plain) == {}
    assert inspect_image.inspect_image(plain)["record"] is None
    assert not inspect_image.inspect_image(plain)["says_ai_generated"]


def test_a_video_has_its_record_too_and_the_same_frames(tmp_path):
    frames = [noise(), noise().transpose(Image.Transpose.ROTATE_180)]
    record = replace(RECORD, prompt="ein Hund läuft 犬", num_frames=2)
    data = video.encode_webp(frames, 8.0, **provenance.webp_options(record))
    file = storage.write_bytes(tmp_path / "a.webp", data)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
        for number, frame in enumerate(frames):
            image.seek(number)
            assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(frame))
    properties = inspect_image.inspect_image(file)
    assert properties["record"]["prompt"] == record.prompt
    assert properties["says_ai_generated"]
    read = read_prompt(read_image_texts(file))
    assert read is not None
    assert read.prompt == record.prompt


def test_images_of_other_programs_are_inspected_as_well(tmp_path):
    info = provenance.png_info(None, {"parameters": "a cat\nSteps: 5, Seed: 1", "Software": "another"})
    file = storage.save_image(tmp_path / "a.png", noise(), pnginfo=info)
    properties = inspect_image.inspect_image(file)
    assert properties["record"] is None
    assert properties["texts"] == {"parameters": "a cat\nSteps: 5, Seed: 1", "software": "another"}
    assert (properties["width"], properties["height"], properties["format"]) == (24, 16, "PNG")


def test_a_file_that_is_not_an_image_is_refused(tmp_path):
    file = storage.write_text(tmp_path / "a.png", "not an image")
    with pytest.raises(DataError, match="not an image"):
        inspect_image.inspect_image(file)

"""Masks: found beside images, rotated and cropped with them, or segmented by a model from a word."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.conditioning.segment import SegmentOptions
from data_tools.prepare import (
    Dataset,
    PrepareOptions,
    check_dataset_folder,
    mask_dataset,
    prepare_dataset,
)
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.data import fingerprints
from lorakit.imaging import decode, masks
from lorakit.manifest import Record
from lorakit.models.text_segmentation import TextSegmenter
from tests.commands import call_data
from tests.data_tools.folders import fill, hashes, photo
from tests.tiny import parts
from tests.tiny.segmenters import save_clipseg


def prepared(folder: Path, **changes: object) -> Dataset:
    return prepare_dataset(
        folder, PrepareOptions(**{"resolution": 64, "quiet": True, "class_noun": "x", **changes})
    )  # type: ignore[arg-type]


def only(result: Dataset) -> Record:
    (record,) = result.records
    return record


def corner(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Return a mask that is white in the box, black elsewhere."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def read(folder: Path, record: Record) -> np.ndarray:
    mask = masks.read_record_mask(folder, record)
    assert mask is not None
    assert mask.size == record.size
    assert mask.mode == "L"
    return np.asarray(mask)


def test_a_mask_label_beside_the_image_is_its_mask(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "sub/b.png": None}, size=(160, 120))
    corner((160, 120), (0, 0, 80, 60)).save(tmp_path / "a-masklabel.png")
    corner((80, 60), (0, 0, 80, 30)).save(tmp_path / "sub" / "b-masklabel.png")  # half as large
    before = hashes(tmp_path)
    first, second = prepared(tmp_path).records
    assert (first.file, first.mask, first.mask_source) == ("a.png", "a-masklabel.png", "file")
    assert read(tmp_path, first)[:60, :80].min() == 255
    assert read(tmp_path, first).mean() == pytest.approx(255 / 4)
    assert read(tmp_path, second).mean() == pytest.approx(255 / 2, abs=1)
    assert hashes(tmp_path) == before
    assert prepared(tmp_path).records == (first, second)
    assert prepared(tmp_path).counts()["masks"] == 2


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.jpg", "a_mask.png"),
        ("a.jpg", "a-Mask.png"),
        ("a.png", "a.mask.png"),
        ("a.jpg", "masks/a.png"),
        ("sub/a.jpg", "Masks/sub/a.png"),
        ("images/a.jpg", "masks/a_mask.png"),
    ],
)
def test_a_grey_file_named_as_a_mask_is_tied_to_its_image(tmp_path: Path, image: str, mask: str) -> None:
    fill(tmp_path, {image: None}, size=(160, 120))
    storage.save_image(tmp_path / mask, corner((160, 120), (0, 0, 80, 120)).convert("RGB"))
    result = prepared(tmp_path)
    assert only(result).file == image
    assert only(result).mask == mask
    assert read(tmp_path, only(result))[60].tolist() == [255] * 80 + [0] * 80


@pytest.mark.parametrize(
    "names", [("a.png", "a_mask.png"), ("masks/carnival.png", "masks/venice.png"), ("b.png", "masks/a.png")]
)
def test_photos_of_masks_are_images(tmp_path: Path, names: tuple[str, str]) -> None:
    fill(tmp_path, dict.fromkeys(names), size=(160, 120))
    assert [(record.file, record.mask) for record in prepared(tmp_path).records] == [
        (name, None) for name in sorted(names)
    ]


def test_a_mask_is_named_in_the_metadata(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "a thing", "masks/m.png": None}, size=(64, 48))
    corner((64, 48), (0, 0, 32, 48)).save(tmp_path / "masks" / "m.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "mask_file_name": "masks/m.png"}\n')
    record = only(prepared(tmp_path))
    assert (record.mask, record.mask_source, record.caption) == ("masks/m.png", "metadata", "a thing")
    for row, words in (
        ('{"file_name": "a.png", "mask_file_name": "../m.png"}', "in the dataset folder"),
        ('{"file_name": "a.png", "mask_file_name": "no.png"}', "no mask 'no.png'"),
        ('{"file_name": "b.png", "mask_file_name": "masks/m.png"}', "no image 'b.png'"),
    ):
        (tmp_path / "metadata.jsonl").write_text(row + "\n")
        (found,) = [f for f in prepared(tmp_path).findings if f.code == "table_rows_unused"]
        assert found.level == "warning"
        assert "metadata.jsonl: line 1 not used" in found.message
        assert words in found.message


def test_transparency_is_a_mask_on_request(tmp_path: Path) -> None:
    image = photo(0, (64, 48)).convert("RGBA")
    alpha = Image.fromarray(np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8))
    image.putalpha(alpha)
    image.save(tmp_path / "a.png")
    assert only(prepared(tmp_path)).mask is None
    record = only(prepared(tmp_path, alpha_mask=True))
    assert (record.mask, record.mask_source) == ("a.png", "alpha")
    assert np.array_equal(read(tmp_path, record), np.asarray(alpha))
    photo(0, (64, 48)).save(tmp_path / "b.png")
    assert prepared(tmp_path, alpha_mask=True).records[1].mask is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stored", [True, False], ids=["as stored", "upright"])
def test_a_mask_fits_an_image_of_any_exif_orientation(tmp_path: Path, orientation: int, stored: bool) -> None:
    """The image is red where the mask is white, also after rotation, crop and resizing."""
    upright = Image.new("RGB", (160, 96), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 60, 40))
    mask = corner((160, 96), (0, 0, 60, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the turn that the orientation undoes
    lying = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    lying.save(tmp_path / "a.png", exif=exif)
    turned = mask.transpose(Image.Transpose(back[orientation])) if orientation > 1 else mask
    sideways = orientation >= 5
    (turned if stored and sideways else mask).save(tmp_path / "a-masklabel.png")
    record = only(prepared(tmp_path, bucket_mode="square"))
    assert record.size == (160, 96)
    whole = np.asarray(decode.read_record_image(tmp_path, record))
    assert np.array_equal(read(tmp_path, record) > 127, whole[..., 0] > 127)
    ambiguous = any(note.startswith("mask_orientation_ambiguous") for note in record.notes)
    assert ambiguous == (orientation in (2, 3, 4))
    mask_read = masks.read_record_mask(tmp_path, record)
    assert mask_read is not None
    small = np.asarray(decode.crop_and_resize(mask_read, record.crop, record.bucket))
    seen = np.asarray(
        decode.crop_and_resize(decode.read_record_image(tmp_path, record), record.crop, record.bucket)
    )
    assert small.shape == seen.shape[:2]
    assert np.abs(small.astype(int) - seen[..., 0]).max() <= 2


def test_a_mask_with_its_own_exif_orientation_is_rotated(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(0, (96, 160)).save(tmp_path / "a.png")
    mask = corner((96, 160), (0, 0, 96, 40))
    mask.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a-masklabel.png", exif=exif)
    record = only(prepared(tmp_path))
    assert (record.size, record.mask_orientation) == ((96, 160), 1)
    assert np.array_equal(read(tmp_path, record), np.asarray(mask))


@pytest.mark.parametrize(
    ("mask", "code"),
    [
        (Image.new("L", (100, 100), 255), "mask_size_mismatch"),
        (Image.new("L", (64, 48), 0), "mask_empty"),
        (b"<html>", "mask_size_mismatch"),
    ],
    ids=["other aspect", "black", "no picture"],
)
def test_an_unusable_mask_is_noted_and_not_used(tmp_path: Path, mask: Any, code: str) -> None:
    fill(tmp_path, {"a.png": None}, size=(64, 48))
    path = tmp_path / "a-masklabel.png"
    path.write_bytes(mask) if isinstance(mask, bytes) else mask.save(path)
    result = prepared(tmp_path)
    assert only(result).keep
    assert only(result).mask is None
    assert ("warning", code) in [(finding.level, finding.code) for finding in result.findings]


def test_a_changed_mask_is_refused_until_the_next_preparation(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None}, size=(64, 48))
    corner((64, 48), (0, 0, 32, 48)).save(tmp_path / "a-masklabel.png")
    record = only(prepared(tmp_path))
    fingerprint = fingerprints.dataset_fingerprint([record])
    corner((64, 48), (0, 0, 16, 48)).save(tmp_path / "a-masklabel.png")
    with pytest.raises(decode.ImageError, match="mask has changed"):
        masks.read_record_mask(tmp_path, record)
    again = only(prepared(tmp_path))
    assert read(tmp_path, again).mean() == pytest.approx(255 / 4)
    assert fingerprints.dataset_fingerprint([again]) != fingerprint
    (tmp_path / "a-masklabel.png").unlink()
    assert only(prepared(tmp_path)).mask is None


def test_a_mask_without_its_image_is_not_used_as_an_image(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None}, size=(64, 48))
    Image.new("L", (64, 48), 255).save(tmp_path / "gone-masklabel.png")
    result = check_dataset_folder(tmp_path, PrepareOptions(quiet=True, class_noun="x"))
    assert [record.file for record in result.records] == ["a.png"]
    assert any("gone-masklabel.png" in finding.files for finding in result.findings)


# ---- from a word -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clipseg(tmp_path_factory.mktemp("models") / "tiny-clipseg")


@pytest.fixture(scope="session")
def sam3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor

    folder = tmp_path_factory.mktemp("models") / "tiny-sam3"
    tokenizer = parts.clip_tokenizer(32)
    attention = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    vit = attention | {"num_hidden_layers": 2, "image_size": 56, "patch_size": 14, "window_size": 2}
    vit |= {"global_attn_indexes": [1], "pretrain_image_size": 56, "model_type": "sam3_vit_model"}
    config = Sam3Config(
        text_config=attention
        | {
            "num_hidden_layers": 1,
            "vocab_size": len(tokenizer),
            "projection_dim": 16,
            "max_position_embeddings": 32,
        }
        | {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id},
        vision_config={
            "backbone_config": vit,
            "fpn_hidden_size": 16,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        geometry_encoder_config=attention | {"num_layers": 1},
        detr_encoder_config=attention | {"num_layers": 1},
        detr_decoder_config=attention | {"num_layers": 1, "num_queries": 5},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sam3Model(config)
    model.save_pretrained(folder)
    Sam3Processor(Sam3ImageProcessor(size={"height": 56, "width": 56}), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["clipseg", "sam3"])
def test_every_pixel_gets_a_probability(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    segmenter = TextSegmenter(folder, folder.name)
    images = [photo(seed, (90, 60)) for seed in (1, 2)]
    first, second = (segmenter.probability_map(image, "dog") for image in images)
    assert first.shape == (60, 90)
    assert 0 <= first.min() < first.max() <= 1
    assert not np.allclose(first, second)
    assert not np.allclose(first, segmenter.probability_map(images[0], "a red circle"))
    assert np.array_equal(first, segmenter.probability_map(images[0], "dog"))


@pytest.mark.parametrize("name", ["clipseg", "sam3"])
def test_a_word_becomes_masks_in_the_manifest(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(name)
    fill(tmp_path, {"a.png": None, "b.png": None, "c.png": None}, size=(90, 60))
    corner((90, 60), (0, 0, 45, 60)).save(tmp_path / "c-masklabel.png")
    result = prepared(tmp_path)
    before = hashes(tmp_path)
    found = TextSegmenter(folder, folder.name).probability_map(
        decode.read_record_image(tmp_path, result.records[0]), "dog"
    )
    options = SegmentOptions(str(folder), "dog", threshold=float(np.median(found)), dilate=0.0)
    first, _, third = mask_dataset(tmp_path, options).records
    assert first.mask_source == f"segmented: dog (tiny-{name}, {options.threshold:g}, 0)"
    assert (third.mask, third.mask_source) == ("c-masklabel.png", "file")
    assert np.array_equal(read(tmp_path, first) == 255, found >= options.threshold)
    assert {name: digest for name, digest in hashes(tmp_path).items() if not name.startswith(".")} == before
    assert prepared(tmp_path).records[0] == first  # a later prepare keeps it, and finds no new images
    grown = dataclasses.replace(options, dilate=0.1, prompt="cat")
    second = mask_dataset(tmp_path, grown).records[0]
    assert second.mask_source == f"segmented: cat (tiny-{name}, {options.threshold:g}, 0.1)"
    other = dataclasses.replace(grown, threshold=0.9 * options.threshold)  # other settings, other masks
    assert mask_dataset(tmp_path, other).records[0].mask_source != second.mask_source
    photo(9, (90, 60)).save(tmp_path / "a.png")
    assert prepared(tmp_path).records[0].mask is None  # of another image


def test_a_prompt_that_is_not_found_is_noted(sam3: Path, tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None}, size=(90, 60))
    prepared(tmp_path)
    result = mask_dataset(tmp_path, SegmentOptions(str(sam3), "unicorn", threshold=0.999))
    assert only(result).mask is None
    assert "mask_prompt_not_found" in {finding.code for finding in result.findings}


def test_invalid_segmentation_options_are_refused_first(tmp_path: Path, clipseg: Path) -> None:
    fill(tmp_path / "d", {"a.png": None})
    prepared(tmp_path / "d")
    (tmp_path / "vlm").mkdir()
    (tmp_path / "vlm" / "config.json").write_text(json.dumps({"model_type": "blip"}))
    (tmp_path / "vlm" / "model.safetensors").write_bytes(b"")
    for options, words in (
        (SegmentOptions(str(clipseg), " "), "the prompt is empty"),
        (SegmentOptions(str(clipseg), "dog", threshold=1.5), "between 0 and 1"),
        (SegmentOptions(str(tmp_path / "vlm"), "dog"), "cannot segment by a text"),
        (SegmentOptions(str(tmp_path / "none"), "dog"), "the model does not exist"),
    ):
        with pytest.raises(ConfigError, match=words):
            mask_dataset(tmp_path / "d", options)


def test_the_mask_command_makes_masks(
    clipseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, {"a.png": None}, size=(90, 60))
    prepared(tmp_path)
    words = [
        "mask",
        str(tmp_path),
        "--model",
        str(clipseg),
        "--prompt",
        "dog",
        "--threshold",
        "0.01",
        "--json",
    ]
    assert call_data(*words, "--quiet") == 0
    assert json.loads(capsys.readouterr().out)["masks"] == 1

"""Edges, depth maps, poses and masks generated from the images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.captioners import ModelFolder
from data_tools.conditioning import controls
from data_tools.conditioning.controls import ControlOptions, control_size
from data_tools.conditioning.depth import DepthEstimator
from data_tools.conditioning.edges import canny
from data_tools.conditioning.random_masks import random_mask
from data_tools.formats.import_export import export_dataset
from data_tools.prepare import (
    PrepareOptions,
    check_dataset_folder,
    generate_dataset_controls,
    prepare_dataset,
)
from lorakit import manifest
from lorakit.cli import main
from lorakit.core.errors import ConfigError
from lorakit.imaging import masks, opencv
from lorakit.manifest import Record
from tests.data_tools.folders import fill, hashes, photo
from tests.tiny.onnx_files import redness_model
from tests.tiny.vision_models import save_depth

OPTIONS = PrepareOptions(resolution=64, quiet=True, class_noun="x", report=False)


def read(folder: Path, record: Record) -> np.ndarray:
    """Return the pixels of the control of a record."""
    return np.asarray(Image.open(folder / record.conditioning_images[0].file))


# ---- edges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(100, 200), (50, 150), (32, 224), (1, 2040)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_edges_are_those_of_opencv(mode: str, low: int, high: int) -> None:
    image = photo(3, (150, 97)).convert(mode)
    edges = cv2.Canny(np.asarray(image.convert("RGB")), low, high)
    assert np.array_equal(np.asarray(canny(image, low, high)), np.repeat(edges[:, :, None], 3, axis=2))
    assert edges.any() == (high < 2040)


@pytest.mark.parametrize("size", [(320, 240), (90, 60), (48, 48)])
def test_controls_have_the_size_that_the_image_is_trained_at(tmp_path: Path, size: tuple[int, int]) -> None:
    fill(tmp_path, {"a.png": None}, size=size)
    (prepared,) = prepare_dataset(tmp_path, OPTIONS).records
    (record,) = generate_dataset_controls(tmp_path, ControlOptions("canny")).records
    (control,) = record.conditioning_images
    whole = photo(0, size).resize(control_size(prepared), Image.Resampling.LANCZOS)
    assert (control.width, control.height) == whole.size
    assert np.array_equal(read(tmp_path, record), np.asarray(canny(whole)))
    assert prepared.bucket is not None
    assert min(whole.size[0] - prepared.bucket[0], whole.size[1] - prepared.bucket[1]) == 0
    generate_dataset_controls(tmp_path, ControlOptions("canny"))
    assert manifest.load_manifest(tmp_path) == [record]  # nothing is new
    prepare_dataset(tmp_path, PrepareOptions(resolution=96, quiet=True, class_noun="x", report=False))
    (larger,) = generate_dataset_controls(tmp_path, ControlOptions("canny")).records
    assert read(tmp_path, larger).shape[:2] == control_size(larger)[::-1] != whole.size[::-1]


def test_without_buckets_controls_have_the_size_of_the_image(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None}, size=(90, 60))
    main.main(["data", "scan", str(tmp_path), "--quiet"])
    (record,) = generate_dataset_controls(tmp_path, ControlOptions("canny")).records
    assert np.array_equal(read(tmp_path, record), np.asarray(canny(photo(0, (90, 60)))))


def test_edges_are_recorded_and_never_replace_a_control_of_the_user(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None}, size=(90, 60))
    photo(7, (90, 60)).save(tmp_path / "b.control.png")
    prepare_dataset(tmp_path, OPTIONS)
    before = hashes(tmp_path)
    command = ["data", "control", str(tmp_path), "--type", "canny", "--json", "--quiet"]
    assert main.main(command) == 0
    first, second = manifest.load_manifest(tmp_path)
    assert [(one.type, one.origin) for one in first.conditioning_images] == [
        ("control", "generated: canny 100 200")
    ]
    assert [(one.file, one.origin) for one in second.conditioning_images] == [("b.control.png", "file")]
    assert {name: digest for name, digest in hashes(tmp_path).items() if not name.startswith(".")} == before
    lines = (tmp_path / manifest.MANIFEST_FILE).read_bytes()
    prepare_dataset(tmp_path, OPTIONS)
    assert (tmp_path / manifest.MANIFEST_FILE).read_bytes() == lines  # found again, and no new images
    generate_dataset_controls(tmp_path, ControlOptions("canny", low_threshold=50))
    assert [one.origin for one in manifest.load_manifest(tmp_path)[0].conditioning_images] == [
        "generated: canny 50 200"
    ]
    photo(9, (90, 60)).save(tmp_path / "a.png")
    prepare_dataset(tmp_path, OPTIONS)
    assert manifest.load_manifest(tmp_path)[0].conditioning_images == ()  # of another image


def test_soft_edges_are_the_last_output_of_an_onnx_file(tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 64), (60, 60, 60))
    image.paste((40, 40, 250), (0, 0, 48, 64))
    (tmp_path / "d").mkdir()
    image.save(tmp_path / "d/a.png")
    prepare_dataset(tmp_path / "d", OPTIONS)
    file = redness_model(tmp_path / "edges.onnx", 512, gain=-0.05)  # of blue - green: channels are BGR
    result = generate_dataset_controls(tmp_path / "d", ControlOptions("softedge", model=str(file)))
    edges = read(tmp_path / "d", result.records[0])
    assert result.records[0].conditioning_images[0].origin == "generated: softedge edges.onnx"
    assert edges.min() == 0 < 240 < edges.max()
    assert edges.shape == (*control_size(result.records[0])[::-1], 3)
    assert edges[0, 0, 0] == 0 < edges[0, -1, 0]  # the gain is negative: blue gives no edge


# ---- depth and masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"depth_estimation_type": "metric", "max_depth": 20}])
def test_depth_maps_are_bright_where_it_is_near(tmp_path: Path, changes: dict[str, object]) -> None:
    save_depth(tmp_path / "depth", **changes)
    fill(tmp_path / "d", {"a.png": None}, size=(90, 60))
    prepare_dataset(tmp_path / "d", OPTIONS)
    options = ControlOptions("depth", model=str(tmp_path / "depth"))
    (record,) = generate_dataset_controls(tmp_path / "d", options).records
    assert record.conditioning_images[0].origin == "generated: depth depth"
    depth = read(tmp_path / "d", record)
    assert depth.shape == (*control_size(record)[::-1], 3)
    assert (depth.min(), depth.max()) == (0, 255)
    model = DepthEstimator(ModelFolder.resolve(str(tmp_path / "depth")), "cpu")
    image = photo(0, (90, 60)).resize(control_size(record), Image.Resampling.LANCZOS)
    with torch.inference_mode():
        outputs = model.model(**model.processor(images=image, return_tensors="pt"))
    sizes = [(image.height, image.width)]
    (predicted,) = model.processor.post_process_depth_estimation(outputs, target_sizes=sizes)
    values = predicted["predicted_depth"].numpy().ravel()
    nearness = 1 / values if changes else values  # the first are distances
    assert np.corrcoef(nearness, depth[:, :, 0].ravel())[0, 1] > 0.999


def test_random_masks_depend_on_the_image_and_cover_a_part() -> None:
    shares = []
    for name in map(str, range(40)):
        mask = np.asarray(random_mask((96, 64), name))
        assert np.array_equal(mask, np.asarray(random_mask((96, 64), name)))
        assert set(np.unique(mask)) == {0, 255}
        shares.append((mask > 0).mean())
    assert 0.02 < min(shares) < 0.15
    assert 0.2 < max(shares) < 0.6
    assert not np.array_equal(
        np.asarray(random_mask((96, 64), "1")), np.asarray(random_mask((96, 64), "1", 1))
    )


def test_masks_are_generated_for_images_without_one(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None, "c.png": None}, size=(90, 60))
    clear = photo(2, (90, 60)).convert("RGBA")
    clear.putalpha(Image.fromarray(np.linspace(0, 255, 5400).reshape(60, 90).astype(np.uint8)))
    clear.save(tmp_path / "c.png")
    Image.new("L", (90, 60), 255).save(tmp_path / "b-masklabel.png")
    prepare_dataset(tmp_path, OPTIONS)
    records = generate_dataset_controls(tmp_path, ControlOptions("mask")).records
    assert [record.mask_source for record in records] == ["generated: random 0", "file", "generated: alpha"]
    mask = masks.read_record_mask(tmp_path, records[0])
    assert mask is not None
    assert np.array_equal(np.asarray(mask), np.asarray(random_mask((90, 60), records[0].content_hash)))
    assert prepare_dataset(tmp_path, OPTIONS).records == records
    assert generate_dataset_controls(tmp_path, ControlOptions("mask", seed=3)).records == records
    again = generate_dataset_controls(tmp_path, ControlOptions("mask", seed=3), regenerate=True).records
    assert [record.mask_source for record in again] == ["generated: random 3", "file", "generated: alpha"]


# ---- what cannot be done -----------------------------------------------------------------------------------


def test_one_image_that_cannot_be_read_is_named_and_the_others_get_their_control(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None}, size=(90, 60))
    prepare_dataset(tmp_path, OPTIONS)
    (tmp_path / "a.png").write_bytes(b"damaged since")
    result = generate_dataset_controls(tmp_path, ControlOptions("canny"))
    assert [len(record.conditioning_images) for record in result.records] == [0, 1]
    named = [finding for finding in result.findings if finding.code == "conditioning_not_generated"]
    assert [(finding.level, finding.files) for finding in named] == [("error", ("a.png",))]
    photo(0, (90, 60)).save(tmp_path / "a.png")
    repaired = generate_dataset_controls(tmp_path, ControlOptions("canny"))
    assert "conditioning_not_generated" not in {finding.code for finding in repaired.findings}
    assert all(record.conditioning_images for record in repaired.records)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted_work_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None, "c.png": None}, size=(90, 60))
    prepare_dataset(tmp_path, OPTIONS)

    done: list[Image.Image] = []

    def interrupted(image: Image.Image, low: int, high: int) -> Image.Image:
        if done:
            raise error
        done.append(image)
        return canny(image, low, high)

    monkeypatch.setattr(controls, "canny", interrupted)
    with pytest.raises(error):
        generate_dataset_controls(tmp_path, ControlOptions("canny"))
    assert [len(record.conditioning_images) for record in manifest.load_manifest(tmp_path)] == [1, 0, 0]


def test_bad_conditioning_files_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None, "lost.source.png": None}, size=(64, 64))
    (tmp_path / "a.source.png").write_bytes(b"no picture")
    photo(3, (64, 32)).save(tmp_path / "b.source.png")
    result = prepare_dataset(tmp_path, OPTIONS)
    assert [len(record.conditioning_images) for record in result.records] == [0, 1]
    named = {
        finding.code: (finding.level, finding.files)
        for finding in check_dataset_folder(tmp_path, OPTIONS).findings
    }
    assert named["conditioning_image_unreadable"] == ("error", ("a.png",))
    assert named["conditioning_image_aspect_mismatch"] == ("note", ("b.png",))
    assert any("lost.source.png" in files for _, files in named.values())


@pytest.mark.parametrize(
    ("options", "words", "remedy"),
    [
        (ControlOptions("hed"), "'hed' is not a type of control", "--type softedge"),
        (ControlOptions("OpenPose"), "is not a type of control", "--type pose"),
        (ControlOptions("lineart"), "is not a type of control", "NAME.control.png"),
        (ControlOptions("depth"), "depth needs a model", "depth-anything/"),
        (ControlOptions("pose"), "pose needs a model", "--detector"),
        (ControlOptions("softedge"), "softedge needs a model", "dexined"),
        (ControlOptions("canny", model="x/y"), "canny needs no model", "leave out"),
        (ControlOptions("depth", model="x/y", detector="x/z"), "depth needs no detector", "leave out"),
        (ControlOptions("canny", low_threshold=300), "low <= high", "--low-threshold 100"),
        (ControlOptions("softedge", model="none.onnx"), "no such file", "edge_detection_dexined"),
    ],
)
def test_options_that_cannot_work_say_what_does(
    tmp_path: Path, options: ControlOptions, words: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        controls.generate_conditioning(tmp_path, [], options)
    assert remedy in str(caught.value.remedy)


def test_a_broken_model_of_soft_edges_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="cannot load the model"):
        controls.generate_conditioning(
            tmp_path, [], ControlOptions("softedge", model=str(tmp_path / "m.onnx"))
        )


def test_without_opencv_canny_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ConfigError, match="OpenCV cannot be loaded") as caught:
        canny(photo(1))
    assert caught.value.remedy == opencv.INSTALL


def test_an_exported_folder_has_the_conditioning_images(tmp_path: Path) -> None:
    fill(tmp_path / "d", {"a.png": "make it red", "a.source.png": None}, size=(64, 64))
    prepare_dataset(tmp_path / "d", OPTIONS)
    (record,) = generate_dataset_controls(tmp_path / "d", ControlOptions("canny")).records
    export_dataset(tmp_path / "d", "imagefolder", tmp_path / "copy")
    assert manifest.load_manifest(tmp_path / "copy")[0].conditioning_images == record.conditioning_images
    for image in record.conditioning_images:
        assert (tmp_path / "copy" / image.file).read_bytes() == (tmp_path / "d" / image.file).read_bytes()

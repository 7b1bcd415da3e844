"""Edges, depth maps and masks generated from the images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.conditioning import controls
from data_tools.conditioning.controls import ControlOptions, canny, random_mask
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
from lorakit.imaging import masks
from tests.data_tools.folders import fill, hashes, photo

OPTIONS = PrepareOptions(resolution=64, quiet=True, class_noun="x", report=False)


def test_canny_finds_edges_one_pixel_wide_and_nothing_else() -> None:
    image = Image.new("RGB", (80, 60), (20, 20, 20))
    image.paste((230, 230, 230), (20, 15, 60, 45))
    edges = np.asarray(canny(image))[:, :, 0] > 0
    ys, xs = np.nonzero(edges)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == pytest.approx((19, 60, 14, 45), abs=1)
    assert edges[25:35].sum(axis=1).tolist() == [2] * 10  # left and right, thin
    assert not edges[22:38, 26:54].any()
    assert not np.asarray(canny(Image.new("RGB", (40, 40), (90, 90, 90)))).any()


def test_a_weak_edge_is_kept_if_it_touches_a_strong_one() -> None:
    ramp = np.zeros((40, 120, 3), dtype=np.uint8)
    ramp[20:] = np.linspace(10, 250, 120).astype(np.uint8)[
        None, :, None
    ]  # weak at the left, strong at the right
    alone = ramp.copy()
    alone[:, 60:] = 0
    alone[20:, 60:] = 0
    low, high = 60, 300
    whole = np.asarray(canny(Image.fromarray(ramp), low, high))[:, :, 0] > 0
    cut = np.asarray(canny(Image.fromarray(alone[:, :50]), low, high))[:, :, 0] > 0
    strict = np.asarray(canny(Image.fromarray(ramp), high, high))[:, :, 0] > 0
    assert whole[15:25, 25:50].any(axis=0).all()  # followed to the left, below `high`
    assert not cut[15:25, 25:45].any()  # the same edge without its strong end
    assert not strict[15:25, 25:50].any()


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
    made = np.asarray(Image.open(tmp_path / first.conditioning_images[0].file))
    assert np.array_equal(made, np.asarray(canny(photo(0, (90, 60)))))
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


def test_masks_are_generated_for_images_without_one(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None, "c.png": None}, size=(90, 60))
    clear = photo(2, (90, 60)).convert("RGBA")
    clear.putalpha(Image.fromarray(np.linspace(0, 255, 5400).reshape(60, 90).astype(np.uint8)))
    clear.save(tmp_path / "c.png")
    Image.new("L", (90, 60), 255).save(tmp_path / "b-masklabel.png")
    prepare_dataset(tmp_path, OPTIONS)
    records = generate_dataset_controls(tmp_path, ControlOptions("mask")).records
    assert [record.mask_source for record in records] == ["generated: random 0", "file", "generated: alpha"]
    read = masks.read_record_mask(tmp_path, records[0])
    assert read is not None
    assert np.array_equal(np.asarray(read), np.asarray(random_mask((90, 60), records[0].content_hash)))
    assert prepare_dataset(tmp_path, OPTIONS).records == records
    assert generate_dataset_controls(tmp_path, ControlOptions("mask", seed=3)).records == records
    again = generate_dataset_controls(tmp_path, ControlOptions("mask", seed=3), regenerate=True).records
    assert [record.mask_source for record in again] == ["generated: random 3", "file", "generated: alpha"]


def test_depth_maps_of_a_model_are_recorded(tmp_path: Path) -> None:
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32,
        patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8,
        is_hybrid=False, readout_type="ignore",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DPTForDepthEstimation(config).save_pretrained(tmp_path / "dpt")
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "dpt")
    fill(tmp_path / "d", {"a.png": None}, size=(90, 60))
    prepare_dataset(tmp_path / "d", OPTIONS)
    (record,) = generate_dataset_controls(
        tmp_path / "d", ControlOptions("depth", model=str(tmp_path / "dpt"))
    ).records
    assert record.conditioning_images[0].origin == "generated: depth dpt"
    depth = np.asarray(Image.open(tmp_path / "d" / record.conditioning_images[0].file))
    assert depth.shape == (60, 90, 3)
    assert (depth.min(), depth.max()) == (0, 255)


def test_invalid_options_are_refused_and_bad_controls_reported(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None, "lost.source.png": None}, size=(64, 64))
    (tmp_path / "a.source.png").write_bytes(b"no picture")
    photo(3, (64, 32)).save(tmp_path / "b.source.png")
    result = prepare_dataset(tmp_path, OPTIONS)
    assert [len(record.conditioning_images) for record in result.records] == [0, 1]
    found = {
        finding.code: (finding.level, finding.files)
        for finding in check_dataset_folder(tmp_path, OPTIONS).findings
    }
    assert found["conditioning_image_unreadable"] == ("error", ("a.png",))
    assert found["conditioning_image_aspect_mismatch"] == ("note", ("b.png",))
    assert any("lost.source.png" in files for _, files in found.values())
    for options, words in (
        (ControlOptions("edges"), "is not a type of control"),
        (ControlOptions("depth"), "depth needs a model"),
        (ControlOptions("canny", low_threshold=300), "low <= high"),
    ):
        with pytest.raises(ConfigError, match=words):
            controls.generate_conditioning(tmp_path, [], options)


def test_folders_export_conditioning_images_and_other_formats_refuse(tmp_path: Path) -> None:
    fill(tmp_path / "d", {"a.png": "make it red", "a.source.png": None}, size=(64, 64))
    (record,) = prepare_dataset(tmp_path / "d", OPTIONS).records
    export_dataset(tmp_path / "d", "imagefolder", tmp_path / "copy")
    assert manifest.load_manifest(tmp_path / "copy")[0].conditioning_images == record.conditioning_images
    assert (tmp_path / "copy/a.source.png").read_bytes() == (tmp_path / "d/a.source.png").read_bytes()
    with pytest.raises(ConfigError, match="cannot store conditioning images"):
        export_dataset(tmp_path / "d", "webdataset", tmp_path / "tar")
    assert (
        json.loads((tmp_path / "d/manifest.jsonl").read_text())["conditioning_images"][0]["type"] == "source"
    )

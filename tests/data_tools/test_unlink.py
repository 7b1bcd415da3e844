"""`data unlink`: what lorakit generated is taken out again, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.conditioning.controls import ControlOptions
from data_tools.conditioning.segment import SegmentOptions
from data_tools.prepare import PrepareOptions, generate_dataset_controls, mask_dataset, prepare_dataset
from data_tools.unlink import UnlinkOptions, unlink_generated
from lorakit import manifest
from lorakit.cli import main
from lorakit.core.errors import ConfigError
from tests.data_tools.folders import fill, hashes, photo
from tests.tiny.segmenters import save_clipseg

OPTIONS = PrepareOptions(resolution=64, quiet=True, class_noun="dog", report=False)
ALL = UnlinkOptions(controls=True, masks=True, captions=True)


def generated(folder: Path) -> Path:
    """Return a dataset of three images: a control and a mask of the user's, and generated ones."""
    fill(folder, {"a.png": "by hand", "b.png": None, "c.png": None}, size=(90, 60))
    photo(7, (90, 60)).save(folder / "b.control.png")
    Image.new("L", (90, 60), 255).save(folder / "c-masklabel.png")
    prepare_dataset(folder, OPTIONS)
    generate_dataset_controls(folder, ControlOptions("canny"))
    generate_dataset_controls(folder, ControlOptions("mask"))
    return folder


def add_model_captions(folder: Path) -> None:
    """Add a caption and tags of a model to each image, as a captioner does."""
    caption = manifest.Caption("1girl, solo", "model", "wd-tagger", "tags")
    records = [
        replace(r, captions=(*(c for c in r.captions if c.source == "file"), caption), tags=("1girl", "solo"))
        for r in manifest.load_manifest(folder)
    ]
    manifest.save_manifest(folder, records)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_everything_generated_is_taken_out_and_a_preparation_is_as_before(tmp_path: Path) -> None:
    fresh = fill(tmp_path / "fresh", {"a.png": "by hand", "b.png": None, "c.png": None}, size=(90, 60))
    photo(7, (90, 60)).save(fresh / "b.control.png")
    Image.new("L", (90, 60), 255).save(fresh / "c-masklabel.png")
    prepare_dataset(fresh, OPTIONS)
    folder = generated(tmp_path / "used")
    add_model_captions(folder)
    result = unlink_generated(folder, ALL, apply=True)
    assert result.numbers == {"controls": 2, "masks": 2, "captions": 3}
    assert len(result.files) == 4
    assert not result.kept
    assert not [path for path in folder.iterdir() if path.name.startswith(".lorakit-")]
    prepare_dataset(folder, OPTIONS)
    assert contents(folder) == contents(fresh)


def test_without_yes_everything_is_named_and_nothing_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = generated(tmp_path)
    before = contents(folder)
    command = ["data", "unlink", str(folder), "--controls", "--masks"]
    assert main.main(command) == 0
    text = capsys.readouterr().out
    assert contents(folder) == before
    assert "2 controls, 2 masks to take out" in text
    assert text.count("  delete ") == 4
    assert "--yes" in text
    assert main.main([*command, "--yes", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["done"], answer["controls"], answer["masks"]) == (True, 2, 2)
    assert set(before) - set(contents(folder)) == set(answer["files"])
    assert all(f"  delete     {file}" in text for file in answer["files"])


@pytest.mark.parametrize("part", ["controls", "masks", "captions"])
def test_only_the_named_part_is_taken_out(tmp_path: Path, part: str) -> None:
    folder = generated(tmp_path)
    add_model_captions(folder)
    before = manifest.load_manifest(folder)
    unlink_generated(folder, UnlinkOptions(**{part: True}), apply=True)
    after = manifest.load_manifest(folder)
    masks = [record.mask_source for record in after]
    controls = [[image.origin for image in record.conditioning_images] for record in after]
    sources = [[caption.source for caption in record.captions] for record in after]
    if part == "masks":
        assert masks == [None, None, "file"]
    else:
        assert masks == [record.mask_source for record in before]
    if part == "controls":
        assert controls == [[], ["file"], []]
    else:
        assert [r.conditioning_images for r in after] == [r.conditioning_images for r in before]
    if part == "captions":
        assert (sources, [record.tags for record in after]) == ([["file"], [], []], [(), (), ()])
    else:
        assert [r.captions for r in after] == [r.captions for r in before]


def test_files_that_changed_or_are_not_in_the_manifest_are_kept_and_named(tmp_path: Path) -> None:
    folder = generated(tmp_path)
    first, second, third = manifest.load_manifest(folder)
    Image.new("RGB", (90, 60)).save(folder / first.conditioning_images[0].file)  # improved by hand
    Image.new("L", (90, 60), 9).save(folder / str(second.mask))
    (folder / ".lorakit-masks/mine.png").write_bytes(b"?")
    (folder / third.conditioning_images[0].file).unlink()
    result = unlink_generated(folder, ALL, apply=True)
    assert result.kept == {
        first.conditioning_images[0].file: "changed since it was generated",
        second.mask: "changed since it was generated",
        ".lorakit-masks/mine.png": "not in the manifest",
    }
    assert all((folder / name).is_file() for name in result.kept)
    assert result.files == [first.mask]
    assert not any(
        image.is_generated for r in manifest.load_manifest(folder) for image in r.conditioning_images
    )


def test_a_record_that_calls_the_files_of_the_user_generated_deletes_none(tmp_path: Path) -> None:
    folder = generated(tmp_path)
    first, second, third = manifest.load_manifest(folder)
    claimed = replace(second.conditioning_images[0], origin="generated: canny 100 200")
    hostile = [
        first,
        replace(second, conditioning_images=(claimed,)),
        replace(third, mask="a.png", mask_source="generated: random 0", mask_content_hash=None),
    ]
    manifest.save_manifest(folder, hostile)
    before = hashes(folder)
    result = unlink_generated(folder, ALL, apply=True)
    assert {"b.control.png", "a.png"} <= set(result.kept)
    assert not [name for name in before if not name.startswith(".") and not (folder / name).is_file()]


def test_segmented_masks_and_the_notes_about_them_go_too(tmp_path: Path) -> None:
    model = save_clipseg(tmp_path / "clipseg")
    folder = fill(tmp_path / "d", {"a.png": "x", "b.png": "y"}, size=(90, 60))
    prepare_dataset(folder, OPTIONS)
    before = contents(folder)
    mask_dataset(folder, SegmentOptions(str(model), "dog", threshold=0.001))
    records = manifest.load_manifest(folder)
    assert all(np.asarray(Image.open(folder / str(record.mask))).any() for record in records)
    assert any(note.startswith("mask_covers_all") for record in records for note in record.notes)
    mask_dataset(folder, SegmentOptions(str(model), "dog", threshold=0.999))
    assert any(n.startswith("mask_prompt_not_found") for r in manifest.load_manifest(folder) for n in r.notes)
    result = unlink_generated(folder, UnlinkOptions(masks=True), apply=True)
    left = {name: data for name, data in contents(folder).items() if name not in result.kept}
    assert left == before


def test_nothing_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to take out is named"):
        unlink_generated(generated(tmp_path), UnlinkOptions())

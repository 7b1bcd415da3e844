"""Crops centered on the subject: by saliency, by faces if a detector is installed, and by hand."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import crop_focus
from data_tools.prepare import PrepareOptions, bucket_dataset, prepare_dataset
from lorakit import manifest
from lorakit.core.errors import ConfigError, DataError
from lorakit.imaging.buckets import CropBox
from lorakit.manifest import Record
from tests.data_tools.folders import fill, photo


def scene(x: float, y: float, size: tuple[int, int] = (480, 320)) -> Image.Image:
    """Return a patch of noise and color on a smooth sky; its center is at the shares x and y."""
    ramp = np.linspace(120, 180, size[1])[:, None, None] * np.ones((1, size[0], 3))
    image = Image.fromarray(ramp.astype(np.uint8))
    patch = photo(5, (90, 90))
    image.paste(patch, (round(x * size[0]) - 45, round(y * size[1]) - 45))
    return image


@pytest.mark.parametrize("place", [(0.2, 0.3), (0.8, 0.3), (0.5, 0.5), (0.75, 0.8), (0.2, 0.8)])
def test_saliency_finds_what_stands_out(place: tuple[float, float]) -> None:
    found = crop_focus.salient_point(scene(*place))
    assert found == pytest.approx(place, abs=0.12)


def test_an_image_of_one_color_has_its_own_center() -> None:
    assert crop_focus.salient_point(Image.new("RGB", (300, 100), "grey")) == (0.5, 0.5)
    assert crop_focus.salient_point(Image.new("RGB", (1, 1))) == (0.5, 0.5)


def options(**changes: object) -> PrepareOptions:
    return PrepareOptions(**{"resolution": 64, "bucket_mode": "square", "quiet": True, **changes})  # type: ignore[arg-type]


def folder(tmp_path: Path, x: float = 0.8) -> Path:
    scene(x, 0.5).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a patch")
    return tmp_path


def test_the_crop_is_centered_on_the_subject_and_its_source_recorded(tmp_path: Path) -> None:
    (centred,) = prepare_dataset(folder(tmp_path), options()).records
    assert (centred.crop, centred.crop_source, centred.focal_point) == ((80, 0, 400, 320), "center", None)
    (salient,) = prepare_dataset(tmp_path, options(crop="saliency")).records
    assert salient.crop == (160, 0, 480, 320)
    assert salient.crop_source == "saliency"
    assert salient.focal_point is not None
    assert salient.focal_point[0] == pytest.approx(0.8 * 480, abs=45)
    (back,) = prepare_dataset(tmp_path, options()).records
    assert back == centred


def test_crop_centers_of_unchanged_images_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = prepare_dataset(folder(tmp_path), options(crop="saliency")).records
    looks: list[Image.Image] = []
    monkeypatch.setattr(crop_focus, "salient_point", lambda image: looks.append(image) or (0.5, 0.5))
    assert prepare_dataset(tmp_path, options(crop="saliency")).records == (first,)
    assert (
        bucket_dataset(tmp_path, options(crop="saliency", resolution=32).bucket_options())
        .records[0]
        .focal_point
        == first.focal_point
    )
    assert not looks
    scene(0.2, 0.5).save(tmp_path / "a.png")  # another image
    prepare_dataset(tmp_path, options(crop="saliency"))
    assert len(looks) == 1


def test_a_crop_set_by_hand_survives_every_command(tmp_path: Path) -> None:
    """The user edits the manifest's crop, and nothing else."""
    prepare_dataset(folder(tmp_path), options())
    path = tmp_path / manifest.MANIFEST_FILE
    row = json.loads(path.read_text())
    row["crop"] = [200, 10, 480, 290]
    path.write_text(json.dumps(row) + "\n")
    for made in (
        bucket_dataset(tmp_path, options(resolution=128).bucket_options()),
        bucket_dataset(tmp_path, options(crop="saliency").bucket_options()),
        prepare_dataset(tmp_path, options(bucket_mode="auto", batch_size=4)),
        prepare_dataset(tmp_path, options(rescan=True)),
    ):
        (record,) = made.records
        assert record.crop == (200, 10, 480, 290)
        assert record.crop_source == "user"


def test_crops_are_read_from_a_file_and_can_be_removed(tmp_path: Path) -> None:
    (centred,) = (
        prepare_dataset(folder(tmp_path / "d"), options()).records if (tmp_path / "d").mkdir() is None else ()
    )
    boxes = tmp_path / "boxes.jsonl"
    boxes.write_text('{"file_name": "a.png", "crop": [0, 0, 100, 100]}\n')
    (record,) = bucket_dataset(tmp_path / "d", options().bucket_options(), crops_file=boxes).records
    assert (record.crop, record.crop_source) == ((0, 0, 100, 100), "user")
    boxes.write_text('{"file_name": "a.png", "crop": null}\n')
    (record,) = bucket_dataset(tmp_path / "d", options().bucket_options(), crops_file=boxes).records
    assert record == centred
    for line, words in (
        ('{"file_name": "b.png", "crop": null}', "no image 'b.png'"),
        ('{"file_name": "a.png", "crop": [0, 0, 1000, 10]}', "does not lie inside"),
        ('{"file_name": "a.png", "crop": [0, 0, 10]}', "is not a crop"),
        ('{"file_name": "a.png", "crop": [0, 0, 1.5, 2]}', "is not a crop"),
        ('{"file_name": "a.png"}', "is not a crop"),
        ("{", "not valid JSON"),
    ):
        boxes.write_text(line + "\n")
        before = (tmp_path / "d" / manifest.MANIFEST_FILE).read_bytes()
        with pytest.raises(DataError, match=words):
            bucket_dataset(tmp_path / "d", options().bucket_options(), crops_file=boxes)
        assert (tmp_path / "d" / manifest.MANIFEST_FILE).read_bytes() == before


def detector(*boxes: CropBox) -> crop_focus.Detector:
    return lambda image: [
        tuple(round(side * image.width / 480) for side in box)  # type: ignore[misc]
        for box in boxes
    ]


def test_faces_go_before_saliency(tmp_path: Path) -> None:
    (record,) = prepare_dataset(folder(tmp_path), options()).records
    (one,) = crop_focus.find_crop_centers(tmp_path, [record], "face", detector=detector((40, 40, 80, 80)))
    assert (one.crop_source, one.focal_point) == ("face", (60, 60))
    (both,) = crop_focus.find_crop_centers(
        tmp_path, [record], "face", detector=detector((40, 40, 80, 80), (200, 60, 240, 100))
    )
    assert both.focal_point == (140, 70)
    (none,) = crop_focus.find_crop_centers(tmp_path, [record], "face", detector=detector())
    assert none.crop_source == "saliency_no_face"
    assert none.focal_point is not None
    assert none.focal_point[0] > 300
    by_hand = dataclasses.replace(record, crop=(0, 0, 50, 50), crop_source="user")
    assert crop_focus.find_crop_centers(tmp_path, [by_hand], "face", detector=detector((40, 40, 80, 80))) == [
        by_hand
    ]
    again: list[Record] = crop_focus.find_crop_centers(
        tmp_path, [none], "face", detector=lambda image: pytest.fail("twice")
    )
    assert again == [none]


def test_a_missing_face_detector_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    crop_focus._face_detector.cache_clear()
    with pytest.raises(ConfigError, match="no face detector") as caught:
        prepare_dataset(folder(tmp_path), options(crop="face"))
    assert "opencv-python-headless" in str(caught.value.remedy)
    assert not (tmp_path / manifest.MANIFEST_FILE).exists()


def test_an_installed_detector_runs(tmp_path: Path) -> None:
    """The tests have no photograph of a person: this checks the call, not the detection."""
    crop_focus._face_detector.cache_clear()
    detect = crop_focus._face_detector()
    assert detect(Image.new("RGB", (320, 240), "grey")) == []


def test_resolutions_exclude_small_images_until_a_smaller_one_is_added(tmp_path: Path) -> None:
    fill(tmp_path, {"small.png": "one", "large.png": "two"}, size=(96, 96))
    photo(3, (300, 200)).save(tmp_path / "large.png")
    tiers = options(bucket_mode="auto", resolutions=(128, 224), resolution=224)
    result = prepare_dataset(tmp_path, tiers)
    large, small = result.records
    assert (small.keep, small.bucket, small.crop) == (False, None, None)
    assert (
        small.reason
        == "below_resolution: 96x96 would be upscaled to fill 128 (add a smaller resolution, or --upscale)"
    )
    assert large.bucket is not None
    assert "below_resolution" in result.counts()["excluded"]
    assert bucket_dataset(tmp_path, tiers.bucket_options()).records == result.records
    assert all(
        record.keep
        for record in prepare_dataset(tmp_path, options(bucket_mode="auto", resolutions=(64, 224))).records
    )
    prepare_dataset(tmp_path, tiers)
    assert all(
        record.keep
        for record in bucket_dataset(tmp_path, options(bucket_mode="auto").bucket_options()).records
    )
    prepare_dataset(tmp_path, tiers)
    enlarged = bucket_dataset(tmp_path, dataclasses.replace(tiers, upscale=True).bucket_options()).records[1]
    assert enlarged.keep
    assert any(note.startswith("upscaled") for note in enlarged.notes)

"""`lorakit data bucket`: costs of each bucket mode, previews, and refusals."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import click
import pytest
from PIL import Image

from data_tools import bucket_costs
from data_tools.assign_buckets import BucketOptions
from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit import manifest
from lorakit.imaging import buckets, decode
from lorakit.manifest import Caption, Record
from tests.commands import call_data as call
from tests.data_tools.folders import fill, hashes, photo

HASH = "ab" * 32
SIZES = [(600, 400)] * 5 + [(400, 600)] * 2 + [(500, 500)]


def records(sizes: list[tuple[int, int]], **changes: object) -> list[Record]:
    plain = [
        Record(f"{n}.png", HASH, HASH, *size, captions=(Caption("x", "file"),))
        for n, size in enumerate(sizes)
    ]
    return [dataclasses.replace(record, **changes) for record in plain]  # type: ignore[arg-type]


def test_bucket_costs_match_their_definitions() -> None:
    found = {
        price.bucket_mode: price
        for price in bucket_costs.compare_bucket_modes(records(SIZES), BucketOptions(256, 16, 4))
    }
    assert set(found) == set(buckets.MODES)
    square = found["square"]
    assert (square.num_buckets, square.max_crop, square.incomplete_batches, square.pixel_budget) == (
        1,
        pytest.approx(1 / 3),
        0.0,
        1.0,
    )
    assert square.mean_crop == pytest.approx(7 / 8 / 3)
    native = found["native"]
    assert native.num_buckets == 3
    assert native.mean_crop < 0.03
    assert native.incomplete_batches == pytest.approx((1 + 2 + 1) / 8)
    assert found["auto"].mean_crop >= native.mean_crop


def test_bucket_costs_count_repeats_and_upscaled_images() -> None:
    twice = records(SIZES[:1], repeats=3) + records([(100, 100)])[:1]
    (square,) = [
        p
        for p in bucket_costs.compare_bucket_modes(twice, BucketOptions(256, 16, 4))
        if p.bucket_mode == "square"
    ]
    assert square.mean_crop == pytest.approx(3 / 4 / 3)
    assert square.upscaled == pytest.approx(1 / 4)


def test_a_mode_that_the_size_multiple_excludes_is_left_out() -> None:
    assert "kohya" not in {
        price.bucket_mode
        for price in bucket_costs.compare_bucket_modes(records(SIZES), BucketOptions(48, 48, 1))
    }


def test_the_command_shows_the_costs_of_each_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, {"a.png": "one", "b.png": "two"}, size=(300, 200))
    photo(7, (200, 300)).save(tmp_path / "a.png")
    prepare_dataset(tmp_path, PrepareOptions(resolution=128, quiet=True))
    before = hashes(tmp_path)
    out = tmp_path.with_name("seen")
    words = ["--resolution", "128", "--bucket-mode", "native", "--batch-size", "2", "--preview", str(out)]
    assert call("bucket", str(tmp_path), *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "batch size 2, resolution 128"
    assert [line[2:].split()[0] for line in lines[1:6]] == ["mode", "auto", "native", "square", "kohya"]
    assert [line[0] for line in lines[2:6]] == [" ", ">", " ", " "]
    assert hashes(tmp_path) == before
    for record in manifest.load_manifest(tmp_path):
        with Image.open(out / f"{record.file}.jpg") as seen:
            assert seen.size == record.bucket
            whole = decode.crop_and_resize(
                decode.read_record_image(tmp_path, record), record.crop, record.bucket
            )
            difference = sum(
                abs(a - b)
                for a, b in zip(
                    seen.resize((1, 1)).getpixel((0, 0)), whole.resize((1, 1)).getpixel((0, 0)), strict=True
                )
            )  # type: ignore[arg-type]
            assert difference < 9


def test_previews_never_land_in_the_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lorakit.core.errors import ConfigError

    fill(tmp_path, {"a.png": "one"})
    prepare_dataset(tmp_path, PrepareOptions(resolution=128, quiet=True))
    with pytest.raises(ConfigError, match="would be trained on"):
        call("bucket", str(tmp_path), "--resolution", "128", "--preview", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_resolutions_on_the_command_line(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "one", "b.png": "two"}, size=(300, 200))
    photo(7, (150, 150)).save(tmp_path / "a.png")
    assert call("prepare", str(tmp_path), "--resolutions", "128,224", "--quiet") == 0
    areas = [
        record.bucket[0] * record.bucket[1] for record in manifest.load_manifest(tmp_path) if record.bucket
    ]
    assert [round(area**0.5 / 32) * 32 for area in areas] == [128, 224]
    with pytest.raises(click.UsageError, match="128,x"):
        call("prepare", str(tmp_path), "--resolutions", "128,x")


def test_every_mode_gives_every_image_a_bucket_and_a_crop(tmp_path: Path) -> None:
    """All modes on one folder: every image has a bucket, and a crop that fits it."""
    sizes = [(300, 200), (200, 300), (256, 256), (400, 130)]
    for number, size in enumerate(sizes):
        photo(number, size).save(tmp_path / f"{number}.png")
    for mode in buckets.MODES:
        options = PrepareOptions(resolution=192, bucket_mode=mode, quiet=True, class_noun="x", report=False)
        made = prepare_dataset(tmp_path, options).records
        assert len(made) == 4
        for record in made:
            assert record.bucket is not None
            assert record.crop is not None
            left, top, right, bottom = record.crop
            assert (right - left) / (bottom - top) == pytest.approx(
                record.bucket[0] / record.bucket[1], rel=0.02
            )
        assert Counter(record.crop_source for record in made) == {"center": 4}

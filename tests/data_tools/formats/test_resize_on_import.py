"""Large images are resized during an import, and nothing else about them changes."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import ExifTags, Image

from data_tools.formats import DatasetFile, resize_on_import
from data_tools.formats.import_export import export_dataset, import_dataset
from lorakit import manifest
from lorakit.cli import main
from lorakit.core.errors import ConfigError
from lorakit.imaging import decode
from lorakit.imaging.image_reader import EXIF_TRANSPOSE
from tests.data_tools.folders import fill, photo
from tests.imaging.test_decode import P3, matrix_profile

SIDE = 120


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def _apart(one: Image.Image, other: Image.Image) -> float:
    """Return the PSNR in decibels between two images of one size."""
    assert one.size == other.size
    difference = np.asarray(one.convert("RGB"), float) - np.asarray(other.convert("RGB"), float)
    return float(10 * np.log10(255**2 / max(1e-9, np.square(difference).mean())))


@pytest.mark.parametrize(("kind", "decibel"), [("JPEG", 36), ("PNG", 50)])
@pytest.mark.parametrize("orientation", [1, *EXIF_TRANSPOSE])
def test_a_resized_image_equals_lanczos_and_keeps_its_orientation(kind, decibel, orientation):
    data = _encoded(photo(1, (640, 480)), kind, exif=_turned(orientation))
    made = resize_on_import.resize_entry(SIDE, DatasetFile(f"a.{kind.lower()}", data))
    small, whole = (decode.decode_bytes(raw, where="a").image for raw in (made.data, data))
    assert min(small.size) == SIDE
    assert _apart(small, whole.resize(small.size, Image.Resampling.LANCZOS)) > decibel
    with Image.open(io.BytesIO(made.data)) as file:
        assert file.format == kind
        assert file.getexif().get(ExifTags.Base.Orientation, 1) == orientation
        assert file.size == (160, 120)  # as the whole one lies in its file


def test_colors_are_converted_to_srgb_and_gray_stays_gray():
    wide = _encoded(photo(2, (640, 480)), "PNG", icc_profile=matrix_profile(P3, 2.2))
    small = Image.open(io.BytesIO(resize_on_import.resize_entry(SIDE, DatasetFile("a.png", wide)).data))
    whole = decode.decode_bytes(wide, where="a").image
    assert "icc_profile" not in small.info
    assert _apart(small, whole.resize(small.size, Image.Resampling.LANCZOS)) > 50
    gray = _encoded(photo(3, (640, 480)).convert("L"), "PNG")
    assert (
        Image.open(io.BytesIO(resize_on_import.resize_entry(SIDE, DatasetFile("a.png", gray)).data)).mode
        == "L"
    )


def test_small_transparent_and_other_files_stay_unchanged():
    small, large = photo(4, (160, SIDE)), photo(5, (640, 480))
    clear = large.convert("RGBA")
    clear.putalpha(Image.new("L", large.size, 128))
    for name, data in {
        "small.jpg": _encoded(small, "JPEG"),
        "clear.png": _encoded(clear, "PNG"),
        "other.webp": _encoded(large, "WEBP"),
        "words.txt": b"a dog",
        "film.mp4": b"no picture",
    }.items():
        assert resize_on_import.resize_entry(SIDE, DatasetFile(name, data)) == resize_on_import.ResizeResult()


def test_a_folder_is_imported_resized_and_prepared(tmp_path, capsys):
    photos = fill(tmp_path / "photos", {"a.png": "a dog", "sub/b.png": "a cat"}, size=(640, 480))
    lying = photo(7, (640, 480))
    lying.save(photos / "c.jpg", exif=_turned(6))
    Image.new("L", (640, 480), 255).save(photos / "c-masklabel.png")  # by a tool that ignores EXIF
    (photos / "cut.jpg").write_bytes(_encoded(lying, "JPEG")[:-4000])
    data = tmp_path / "data"
    command = ["data", "import", str(data), str(photos), "--short-side", str(SIDE)]
    assert main.main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["num_resized"], list(answer["resize_errors"])) == (4, ["cut.jpg"])
    assert answer["resize_errors"]["cut.jpg"].startswith("truncated: damaged or truncated")
    assert (data / "cut.jpg").read_bytes() == (photos / "cut.jpg").read_bytes()
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    assert main.main(command) == 0  # a stopped import continues: equal files are skipped
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    assert "4 of them resized" in (shown := capsys.readouterr().out)
    assert "unreadable cut.jpg, copied unchanged: truncated" in shown
    options = ["--resolution", "128", "--class-noun", "pet", "--quiet"]
    assert main.main(["data", "prepare", str(data), *options]) == 0
    records = {record.file: record for record in manifest.load_manifest(data)}
    assert {file: record.size for file, record in records.items() if record.keep} == {
        **dict.fromkeys(("a.png", "sub/b.png"), (160, 120)),
        "c.jpg": (120, 160),
    }
    assert (records["a.png"].caption, records["sub/b.png"].caption) == ("a dog", "a cat")
    assert (records["c.jpg"].mask, records["c.jpg"].mask_orientation) == ("c-masklabel.png", 6)


def test_a_resized_import_of_a_prepared_folder_is_measured_again(tmp_path):
    photos = fill(tmp_path / "photos", {"a.png": "a dog"}, size=(640, 480))
    for folder in (photos, tmp_path / "data"):
        if folder != photos:
            import_dataset(folder, [photos], short_side=SIDE)
        assert main.main(["data", "prepare", str(folder), "--resolution", "128", "--quiet"]) == 0
    (record,) = manifest.load_manifest(tmp_path / "data")
    assert (record.size, record.caption) == ((160, 120), "a dog")
    decode.read_record_image(tmp_path / "data", record)  # the image is the recorded one


def test_an_export_of_lorakit_cannot_be_resized(tmp_path):
    photos = fill(tmp_path / "photos", {"a.png": "a dog"}, size=(640, 480))
    assert main.main(["data", "prepare", str(photos), "--resolution", "128", "--quiet"]) == 0
    export_dataset(photos, "webdataset", tmp_path / "packed")
    with pytest.raises(ConfigError, match="without --short-side"):
        import_dataset(tmp_path / "data", [tmp_path / "packed"], short_side=SIDE)
    assert not (tmp_path / "data").exists()


def test_many_files_are_resized_in_processes_in_order(monkeypatch):
    monkeypatch.setattr(resize_on_import, "MIN_FILES_FOR_POOL", 4)
    monkeypatch.setattr(resize_on_import.os, "cpu_count", lambda: 2)
    data = _encoded(photo(8, (200, 160)), "JPEG")
    entries = [DatasetFile(f"{number}.jpg", data[: len(data) - 2000 * (number == 3)]) for number in range(9)]
    found = list(resize_on_import.resize_entries(iter(entries), SIDE + 100))
    assert [entry for entry, _ in found] == entries
    assert [made for _, made in found] == [
        resize_on_import.resize_entry(SIDE + 100, entry) for entry in entries
    ]

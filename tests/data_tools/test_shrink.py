"""Large pictures are made smaller on their way into a dataset, and nothing else about them changes."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import ExifTags, Image

from data_tools.formats import DatasetFile, shrink
from data_tools.formats.import_export import export_dataset, import_dataset
from lorakit import manifest
from lorakit.cli import main
from lorakit.core.errors import ConfigError
from lorakit.imaging import decode
from lorakit.imaging.image_reader import EXIF_TRANSPOSE
from tests.data_tools.folders import fill, photo
from tests.imaging.test_decode import P3, matrix_profile

SIDE = 120


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def _apart(one: Image.Image, other: Image.Image) -> float:
    """Decibels between two pictures of one size."""
    assert one.size == other.size
    difference = np.asarray(one.convert("RGB"), float) - np.asarray(other.convert("RGB"), float)
    return float(10 * np.log10(255**2 / max(1e-9, np.square(difference).mean())))


@pytest.mark.parametrize(("kind", "decibel"), [("JPEG", 36), ("PNG", 50)])
@pytest.mark.parametrize("orientation", [1, *EXIF_TRANSPOSE])
def test_a_large_picture_is_that_of_lanczos_and_keeps_its_orientation(kind, decibel, orientation):
    data = _encoded(photo(1, (640, 480)), kind, exif=_turned(orientation))
    made = shrink.resize_entry(SIDE, DatasetFile(f"a.{kind.lower()}", data))
    small, whole = (decode.decode_bytes(raw, where="a").image for raw in (made.data, data))
    assert min(small.size) == SIDE
    assert _apart(small, whole.resize(small.size, Image.Resampling.LANCZOS)) > decibel
    with Image.open(io.BytesIO(made.data)) as file:
        assert file.format == kind
        assert file.getexif().get(ExifTags.Base.Orientation, 1) == orientation
        assert file.size == (160, 120)  # as the whole one lies in its file


def test_colours_of_a_profile_come_in_srgb_and_grey_stays_grey():
    wide = _encoded(photo(2, (640, 480)), "PNG", icc_profile=matrix_profile(P3, 2.2))
    small = Image.open(io.BytesIO(shrink.resize_entry(SIDE, DatasetFile("a.png", wide)).data))
    whole = decode.decode_bytes(wide, where="a").image
    assert "icc_profile" not in small.info
    assert _apart(small, whole.resize(small.size, Image.Resampling.LANCZOS)) > 50
    grey = _encoded(photo(3, (640, 480)).convert("L"), "PNG")
    assert Image.open(io.BytesIO(shrink.resize_entry(SIDE, DatasetFile("a.png", grey)).data)).mode == "L"


def test_what_stays_as_it_is():
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
        assert shrink.resize_entry(SIDE, DatasetFile(name, data)) == shrink.ResizeResult()


def test_a_folder_is_imported_smaller_and_prepared(tmp_path, capsys):
    photos = fill(tmp_path / "photos", {"a.png": "a dog", "sub/b.png": "a cat"}, size=(640, 480))
    lying = photo(7, (640, 480))
    lying.save(photos / "c.jpg", exif=_turned(6))
    Image.new("L", (640, 480), 255).save(photos / "c-masklabel.png")  # by a tool that ignores EXIF
    (photos / "cut.jpg").write_bytes(_encoded(lying, "JPEG")[:-4000])
    data = tmp_path / "data"
    command = ["data", "import", str(data), str(photos), "--short-side", str(SIDE)]
    assert main.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["smaller"], list(told["refused"])) == (4, ["cut.jpg"])
    assert told["refused"]["cut.jpg"].startswith("truncated: damaged or cut off")
    assert (data / "cut.jpg").read_bytes() == (photos / "cut.jpg").read_bytes()
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    assert main.main(command) == 0  # a stopped import goes on: equal files are passed over
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    assert "4 of them made smaller" in (shown := capsys.readouterr().out)
    assert "refused    cut.jpg, copied as it is: truncated" in shown
    options = ["--resolution", "128", "--class-noun", "pet", "--quiet"]
    assert main.main(["data", "prepare", str(data), *options]) == 0
    records = {record.file: record for record in manifest.load_manifest(data)}
    assert {file: record.size for file, record in records.items() if record.keep} == {
        **dict.fromkeys(("a.png", "sub/b.png"), (160, 120)),
        "c.jpg": (120, 160),
    }
    assert (records["a.png"].caption, records["sub/b.png"].caption) == ("a dog", "a cat")
    assert (records["c.jpg"].mask, records["c.jpg"].mask_turn) == ("c-masklabel.png", 6)


def test_a_prepared_folder_is_measured_anew(tmp_path):
    photos = fill(tmp_path / "photos", {"a.png": "a dog"}, size=(640, 480))
    for folder in (photos, tmp_path / "data"):
        if folder != photos:
            import_dataset(folder, [photos], short_side=SIDE)
        assert main.main(["data", "prepare", str(folder), "--resolution", "128", "--quiet"]) == 0
    (record,) = manifest.load_manifest(tmp_path / "data")
    assert (record.size, record.caption) == ((160, 120), "a dog")
    decode.read_record_image(tmp_path / "data", record)  # the picture is the recorded one


def test_what_lorakit_packed_is_refused(tmp_path):
    photos = fill(tmp_path / "photos", {"a.png": "a dog"}, size=(640, 480))
    assert main.main(["data", "prepare", str(photos), "--resolution", "128", "--quiet"]) == 0
    export_dataset(photos, "webdataset", tmp_path / "packed")
    with pytest.raises(ConfigError, match="without --short-side"):
        import_dataset(tmp_path / "data", [tmp_path / "packed"], short_side=SIDE)
    assert not (tmp_path / "data").exists()


def test_many_files_go_through_processes_in_their_order(monkeypatch):
    monkeypatch.setattr(shrink, "MIN_FILES_FOR_POOL", 4)
    monkeypatch.setattr(shrink.os, "cpu_count", lambda: 2)
    data = _encoded(photo(8, (200, 160)), "JPEG")
    entries = [DatasetFile(f"{number}.jpg", data[: len(data) - 2000 * (number == 3)]) for number in range(9)]
    found = list(shrink.resize_entries(iter(entries), SIDE + 100))
    assert [entry for entry, _ in found] == entries
    assert [made for _, made in found] == [shrink.resize_entry(SIDE + 100, entry) for entry in entries]

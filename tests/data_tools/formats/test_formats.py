"""Import and export: a dataset is the same after a round trip through another format."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from data_tools.formats.import_export import EXPORT_FORMATS, export_dataset, import_dataset
from data_tools.formats.trainers import TRAINERS
from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.imaging import masks
from lorakit.manifest import Caption, Record
from tests.data_tools.folders import fill, hashes, photo

OPTIONS = PrepareOptions(resolution=64, quiet=True, report=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with every source of captions, repeats, a mask, a crop of the user and a bad file."""
    names = {
        "a.png": "=SUM(A1)",
        "sub/b.jpg": None,
        "sub/ünï code \U0001f600.png": "drei",
        "10_sks dog/c.webp": None,
    }
    folder = fill(tmp_path_factory.mktemp("formats") / "source", names, size=(96, 80))
    (folder / "sub/b.json").write_text('{"captions": ["two", "zwei"], "tags": ["t1", "t2"]}')
    photo(9, (96, 80)).save(folder / "noending", format="PNG")
    photo(8, (96, 80)).save(folder / "deep.png")
    Image.new("L", (96, 80), 255).save(folder / "a-masklabel.png")
    (folder / "metadata.csv").write_text("file_name,text\nnoending,of the table\n")
    (folder / "bad.png").write_bytes(b"")
    prepare_dataset(folder, dataclasses.replace(OPTIONS, allow_missing_captions=True))
    records = manifest.load_manifest(folder)
    for index, record in enumerate(records):
        if record.file == "deep.png":
            said = Caption(
                "a bare tree, at dusk",
                "model",
                "captioner",
                "describe",
                original_text="A bare tree, at dusk.",
            )
            crop = {"crop": (8, 0, 88, 80), "crop_source": "user"}
            records[index] = dataclasses.replace(record, captions=(said,), **crop)  # type: ignore[arg-type]
    manifest.save_manifest(folder, records)
    prepare_dataset(folder, OPTIONS)
    return folder


def kept(folder: Path) -> dict[str, Record]:
    return {record.file: record for record in manifest.load_manifest(folder) if record.keep}


def away_from_its_table(record: Record) -> Record:
    return dataclasses.replace(
        record, notes=tuple(n for n in record.notes if n != manifest.USER_METADATA_NOTE)
    )


def place(folder: Path, kind: str) -> Path:
    return folder / ("out.zip" if kind == "zip" else "out")


@pytest.mark.parametrize("kind", [kind for kind in EXPORT_FORMATS if kind not in TRAINERS])
def test_a_round_trip_loses_nothing(source: Path, tmp_path: Path, kind: str) -> None:
    before = hashes(source)
    done = export_dataset(source, kind, place(tmp_path, kind), shard_bytes=20_000)
    assert (done.num_images, done.left_out.names("image")) == (6, ["bad.png"])
    back = tmp_path / "back"
    done = import_dataset(back, [place(tmp_path, kind)])
    assert (done.num_images, done.num_masks) == (6, 1)
    wanted = {name: away_from_its_table(record) for name, record in kept(source).items()}
    assert kept(back) == wanted
    for name in wanted:
        assert (back / name).read_bytes() == (source / name).read_bytes()
    assert (back / "a-masklabel.png").read_bytes() == (source / "a-masklabel.png").read_bytes()
    prepare_dataset(back, OPTIONS)  # and the folder stands on its own
    assert kept(back) == wanted
    assert hashes(source) == before


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "zip"])
def test_equal_datasets_give_equal_files(source: Path, tmp_path: Path, kind: str) -> None:
    for name in ("one", "two"):
        export_dataset(source, kind, place(tmp_path / name, kind), shard_bytes=20_000)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert (len(hashes(tmp_path / "one")) == 1) is (kind == "zip")


def test_captions_survive_even_without_the_manifest(source: Path, tmp_path: Path) -> None:
    export_dataset(source, "imagefolder", tmp_path / "out")
    (tmp_path / "out" / manifest.MANIFEST_FILE).unlink()
    (tmp_path / "out" / manifest.METADATA_FILE).unlink()
    prepare_dataset(tmp_path / "out", OPTIONS)
    texts = {name: [caption.text for caption in record.captions] for name, record in kept(source).items()}
    assert {n: [c.text for c in r.captions] for n, r in kept(tmp_path / "out").items()} == texts
    assert kept(tmp_path / "out")["sub/b.jpg"].tags == ("t1", "t2")


def test_kohyas_layout_is_exported_and_imported(source: Path, tmp_path: Path) -> None:
    export_dataset(source, "kohya", tmp_path / "out", folder_name="sks dog")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert {"10_sks dog/c.webp", "10_sks dog/c.txt", "1_sks dog/a.png", "1_sks dog/sub_b.jpg"} <= names
    assert (tmp_path / "out/masks/1_sks dog/a.png").is_file()
    assert {path.suffix for path in (tmp_path / "out/1_sks dog").iterdir()} == {".png", ".jpg", ".txt"}
    prepare_dataset(tmp_path / "out", OPTIONS)
    found = {record.sha256: record for record in kept(tmp_path / "out").values()}
    for record in kept(source).values():
        again = found[record.sha256]
        assert [c.text for c in again.captions] == [c.text for c in record.captions]
        assert (again.repeats, again.tags) == (record.repeats, record.tags)
        # sd-scripts needs a mask of each image of a folder: a white one counts everything.
        white = masks.mask_hash(Image.new("L", record.size, 255)) if again.mask else None
        assert again.mask_content_hash == (record.mask_content_hash or white)


def test_a_year_is_not_a_number_of_repeats(tmp_path: Path) -> None:
    fill(tmp_path / "in", {"2024_trip/a.png": "one"})
    prepare_dataset(tmp_path / "in", PrepareOptions(resolution=64, quiet=True, report=False))
    export_dataset(tmp_path / "in", "kohya", tmp_path / "out", folder_name="trip")
    assert (tmp_path / "out/1_trip/2024_trip_a.png").is_file()
    assert not (tmp_path / "out/2024_trip").exists()


def test_equal_names_in_kohyas_layout_are_numbered(tmp_path: Path) -> None:
    fill(tmp_path / "in", {"x/a.png": "one", "x_a.png": "two", "x_a.jpg": None}, size=(64, 64))
    prepare_dataset(tmp_path / "in", dataclasses.replace(OPTIONS, class_noun="dog"))
    done = export_dataset(tmp_path / "in", "kohya", tmp_path / "out", folder_name="dog")
    images = {
        path.stem: path for path in (tmp_path / "out/1_dog").iterdir() if path.suffix in (".png", ".jpg")
    }
    assert len(images) == done.num_images == len(kept(tmp_path / "in"))


def test_hugging_face_datasets_reads_an_export(source: Path, tmp_path: Path) -> None:
    import datasets

    export_dataset(source, "parquet", tmp_path / "table", shard_bytes=20_000)
    export_dataset(source, "imagefolder", tmp_path / "folder")
    export_dataset(source, "imagefolder", tmp_path / "csv", metadata_format="csv")
    export_dataset(source, "imagefolder", tmp_path / "parquet", metadata_format="parquet")
    texts = {record.caption for record in kept(source).values()}
    cache = str(tmp_path / "cache")
    table = datasets.load_dataset("parquet", data_dir=str(tmp_path / "table"), split="train", cache_dir=cache)
    assert isinstance(table.features["image"], datasets.Image)
    assert {row["text"] for row in table} == texts
    assert [row["image"].size for row in table] == [(96, 80)] * 6
    for kind in ("folder", "csv", "parquet"):
        folder = str(tmp_path / kind)
        loaded = datasets.load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=cache)
        guarded = {f"'{text}" if kind == "csv" and text.startswith("=") else text for text in texts}
        assert {row["text"] for row in loaded} == guarded


def test_a_saved_hugging_face_dataset_is_read(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"picture": datasets.Image(), "caption": datasets.Value("string")})
    parts = {}
    for number, split in enumerate(("train", "test")):
        rows = {"picture": [photo(number * 9 + i, (64, 48)) for i in range(3)], "caption": ["x", "y", "z"]}
        parts[split] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert import_dataset(tmp_path / "data", [tmp_path / "saved"]).num_images == 6
    prepare_dataset(tmp_path / "data", OPTIONS)
    found = kept(tmp_path / "data")
    assert {name.split("/")[0] for name in found} == {"train", "test"}
    assert sorted(record.caption for record in found.values()) == ["x", "x", "y", "y", "z", "z"]


def test_a_webdataset_of_another_tool_becomes_images_with_captions(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photo(1, (64, 48)).save(buffer, "JPEG")
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for key in ("000000001", "000000002"):
            described = json.dumps({"caption": f"image {key}", "url": "https://x", "width": 64}).encode()
            for ending, data in (("jpg", buffer.getvalue()), ("json", described), ("cls", b"3")):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    done = import_dataset(tmp_path / "data", [tmp_path / "00000.tar"])
    names = ["000000001.cls", "000000002.cls"]
    assert (done.num_images, done.num_text_files, done.left_out.names("file")) == (2, 2, names)
    prepare_dataset(tmp_path / "data", OPTIONS)
    assert kept(tmp_path / "data")["000000002.jpg"].caption == "image 000000002"


def test_several_archives_get_a_folder_each(tmp_path: Path) -> None:
    for name in ("one", "two"):
        fill(tmp_path / name, {"a.png": name}, size=(64, 48))
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for file in (tmp_path / name).iterdir():
                archive.write(file, file.name)
    import_dataset(tmp_path / "data", [tmp_path / "one.zip", tmp_path / "two.zip"])
    assert sorted(hashes(tmp_path / "data")) == ["one/a.png", "one/a.txt", "two/a.png", "two/a.txt"]


def test_a_stopped_transfer_continues_and_overwrites_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written = tmp_path / "out", []

    def stop(name: str, path: Path) -> None:
        written.append(name)
        if written.count("rename") == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(storage, "io_hook", stop)
    with pytest.raises(KeyboardInterrupt):
        export_dataset(source, "imagefolder", out)
    monkeypatch.undo()
    assert not (out / manifest.MANIFEST_FILE).exists()
    assert not [path for path in out.rglob("*") if storage.is_internal_file(path)]
    export_dataset(source, "imagefolder", out)
    export_dataset(source, "imagefolder", tmp_path / "whole")
    assert hashes(out) == hashes(tmp_path / "whole")
    (out / "a.txt").write_text("my own words")
    with pytest.raises(DataError, match="another file has this name"):
        export_dataset(source, "imagefolder", out)
    assert (out / "a.txt").read_text() == "my own words"


def test_an_impossible_export_is_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown format"):
        export_dataset(source, "arrow", tmp_path / "out")
    with pytest.raises(ConfigError, match="inside the dataset"):
        export_dataset(source, "zip", source / "out.zip")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        export_dataset(source, "webdataset", tmp_path / "full")
    with pytest.raises(ConfigError, match="overlap"):
        import_dataset(source / "new", [source])
    with pytest.raises(DataError, match="no manifest"):
        export_dataset(tmp_path / "full", "zip", tmp_path / "x.zip")


def test_a_file_that_changed_is_not_exported(source: Path, tmp_path: Path) -> None:
    import_dataset(tmp_path / "copy", [source])
    prepare_dataset(tmp_path / "copy", dataclasses.replace(OPTIONS, class_noun="dog"))
    photo(77).save(tmp_path / "copy/a.png")
    for kind in EXPORT_FORMATS:
        with pytest.raises(DataError, match="changed since it was prepared"):
            export_dataset(tmp_path / "copy", kind, place(tmp_path / kind, kind))


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|'/C calc'!A0", "-2", "@x", "'quoted'", "'=x", "plain", 'a,b"c']
)
def test_a_caption_is_inert_in_a_spreadsheet_and_imported_unchanged(tmp_path: Path, text: str) -> None:
    fill(tmp_path / "in", {"a.png": text}, size=(64, 64))
    prepare_dataset(tmp_path / "in", OPTIONS)
    export_dataset(tmp_path / "in", "imagefolder", tmp_path / "out", metadata_format="csv")
    with open(tmp_path / "out/metadata.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert not row["text"].startswith(("=", "+", "-", "@"))
    for name in ("a.txt", manifest.MANIFEST_FILE):
        (tmp_path / "out" / name).unlink()
    prepare_dataset(tmp_path / "out", OPTIONS)
    assert kept(tmp_path / "out")["a.png"].captions == (Caption(text, "metadata"),)


def test_kohyas_json_is_written_and_read(source: Path, tmp_path: Path) -> None:
    export_dataset(source, "imagefolder", tmp_path / "out", metadata_format="kohya")
    value = json.loads((tmp_path / "out/meta_cap.json").read_text(encoding="utf-8"))
    assert value["sub/b"] == {"caption": "two", "tags": "t1, t2"}
    for path in [*(tmp_path / "out").rglob("*.txt"), tmp_path / "out/sub/b.json"]:
        path.unlink()
    for own in (manifest.MANIFEST_FILE, manifest.METADATA_FILE):
        (tmp_path / "out" / own).unlink()
    for _ in range(2):
        prepare_dataset(tmp_path / "out", OPTIONS)
        found = kept(tmp_path / "out")
        assert found["sub/b.jpg"].caption == "two, t1, t2"
        assert found["a.png"].caption == "=SUM(A1)"


@pytest.mark.parametrize(
    "key", ["/home/someone/set/sub/a.png", "C:\\set\\sub\\a", "sub/a", "../../sub/a.png"]
)
def test_paths_in_kohyas_json_only_name_images_of_the_folder(tmp_path: Path, key: str) -> None:
    fill(tmp_path, {"sub/a.png": None, "a.png": "beside"}, size=(64, 64))
    (tmp_path / "meta_lat.json").write_text(
        json.dumps({key: {"tags": "1girl, solo", "train_resolution": [512, 512]}})
    )
    prepare_dataset(tmp_path, OPTIONS)
    assert kept(tmp_path)["sub/a.png"].caption == "1girl, solo"


@pytest.mark.parametrize(
    ("text", "words"),
    [("[1]", "entry 1 not used"), ("{", "not valid JSON"), ('{"x": {"tags": "dog"}}', "no image 'x'")],
)
def test_bad_kohya_json_is_named_with_its_position(tmp_path: Path, text: str, words: str) -> None:
    fill(tmp_path, {"a.png": "beside"}, size=(64, 64))
    (tmp_path / "meta_cap.json").write_text(text)
    (found,) = [f for f in prepare_dataset(tmp_path, OPTIONS).findings if f.code == "table_rows_unused"]
    assert words in found.message
    assert found.files == ("meta_cap.json",)

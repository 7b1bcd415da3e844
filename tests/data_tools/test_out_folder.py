"""`--out`: images in a folder that is only read, and everything that lorakit writes in another one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.formats.import_export import export_dataset, import_dataset
from data_tools.out_folder import open_out_folder
from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit import manifest
from lorakit.cli import main
from lorakit.core import dataset_paths, folders
from lorakit.core.errors import ConfigError, DataError, DiskError
from lorakit.data import fingerprints
from lorakit.data.items import load_training_records
from lorakit.evaluation.judges import load_folder_references
from lorakit.imaging import decode, masks
from tests import runs
from tests.data_tools.folders import fill, hashes, photo
from tests.data_tools.read_only import make_read_only, ordinary_user

OPTIONS = PrepareOptions(resolution=64, quiet=True, class_noun="dog", trigger="sks", report=False)
IMAGES = {"a.png": "a sks dog by hand", "b.png": None, "sub/c.png": None}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load all modules: an ordinary user may not be allowed to read those of root."""
    folder = fill(tmp_path_factory.mktemp("warm"), {"a.png": "x", "b.png": "y"}, size=(96, 64))
    prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True))
    for type in ("canny", "mask"):
        lorakit("data", "control", folder, "--type", type)


@pytest.fixture
def place(warm: None) -> Iterator[Path]:
    """A folder with `photos`, which cannot be written to."""
    with ordinary_user() as folder:
        fill(folder / "photos", IMAGES, size=(96, 64))
        Image.new("L", (96, 64), 255).save(folder / "photos/b-masklabel.png")
        photo(9, (96, 64)).save(folder / "photos/b.control.png")
        yield make_read_only(folder / "photos").parent


def lorakit(*arguments: object) -> int:
    return main.main([*map(str, arguments), "--quiet"])


def test_every_command_that_writes_names_out_where_it_cannot(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["prepare", "--class-noun", "dog"],
        ["scan"],
        ["caption", "--class-noun", "dog"],
        ["merge"],
    ):
        assert lorakit("data", command[0], place / "photos", *command[1:]) == DiskError("").exit_code
        error = capsys.readouterr().err
        assert "read-only" in error
        assert f"lorakit data prepare {place / 'photos'} --out DIR" in error
    assert sorted(path.name for path in place.iterdir()) == ["photos"]
    assert lorakit("data", "check", place / "photos", "--class-noun", "dog", "--fail-on", "never") == 0


def test_all_commands_write_to_out_and_read_the_images_where_they_are(place: Path) -> None:
    photos, out = place / "photos", place / "prepared"
    before = hashes(photos)
    words = ["--class-noun", "dog", "--trigger", "sks"]
    assert lorakit("data", "scan", photos, "--out", out) == 0
    assert lorakit("data", "prepare", photos, "--out", out, "--resolution", 64, *words) == 0
    assert lorakit("data", "control", photos, "--out", out, "--type", "canny") == 0
    assert lorakit("data", "control", photos, "--out", out, "--type", "mask") == 0
    assert lorakit("data", "caption", photos, "--out", out, "--overwrite-captions", *words) == 0
    assert lorakit("data", "bucket", photos, "--out", out, "--resolution", 64) == 0
    assert lorakit("data", "report", photos, "--out", out) == 0
    assert lorakit("data", "check", photos, "--out", out, *words, "--fail-on", "never") == 0
    assert hashes(photos) == before
    assert {path.name for path in photos.iterdir()} == {Path(name).parts[0] for name in before}
    written = {"manifest.jsonl", "metadata.jsonl", "report.html", "report.json", "lorakit-images.json"}
    assert written <= {path.name for path in out.iterdir()}
    a, b, c = manifest.load_manifest(out)
    assert [one.file for one in (a, b, c)] == ["a.png", "b.png", "sub/c.png"]
    assert [one.mask_source for one in (a, b, c)] == ["generated: random 0", "file", "generated: random 0"]
    assert (b.mask, b.conditioning_images[0].file) == ("b-masklabel.png", "b.control.png")
    assert (out / a.conditioning_images[0].file).is_file()
    lines = []
    for folder in ([out], [photos, "--out", out]):  # the folder itself knows its images
        assert lorakit("data", "prepare", *folder, "--resolution", 64, *words) == 0
        lines.append((out / manifest.MANIFEST_FILE).read_bytes())
    assert lines[0] == lines[1]


def test_a_training_reads_images_masks_and_captions_of_a_read_only_folder(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", IMAGES, size=(96, 64))
    Image.new("L", (96, 64), 255).save(photos / "b-masklabel.png")
    make_read_only(photos, required=False)
    before = hashes(photos)
    out = open_out_folder(photos, tmp_path / "out")
    prepare_dataset(out, OPTIONS)
    lorakit("data", "control", out, "--type", "mask")
    train = {"steps": 2, "batch_size": 2, "precision": "fp32"}
    recipe = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", out, tmp_path / "run", train=train)
    run = runs.train(recipe, "objective.masked_loss={}")
    assert (run / "adapter.safetensors").is_file()
    assert hashes(photos) == before


def test_the_dataset_is_the_same_as_one_beside_the_images(tmp_path: Path) -> None:
    fill(tmp_path / "photos", IMAGES, size=(96, 64))
    (tmp_path / "photos/metadata.jsonl").write_text('{"file_name": "b.png", "text": "from a table"}\n')
    out = open_out_folder(tmp_path / "photos", tmp_path / "out")
    for _ in range(2):
        apart = prepare_dataset(out, OPTIONS)
        assert [json.loads(line)["text"] for line in (out / "metadata.jsonl").read_text().splitlines()] == [
            record.caption for record in apart.records
        ]
    beside = prepare_dataset(tmp_path / "photos", OPTIONS)
    assert apart.records == beside.records
    assert fingerprints.dataset_fingerprint(apart.records) == fingerprints.dataset_fingerprint(beside.records)
    assert [r.caption for r in load_training_records(out)] == [r.caption for r in beside.records]
    (tmp_path / "photos/a.txt").write_text("a sks dog, written anew")
    assert prepare_dataset(out, OPTIONS).records[0].caption == "a sks dog, written anew"


def test_report_export_import_and_evaluation_read_the_images_where_they_are(tmp_path: Path) -> None:
    fill(tmp_path / "photos", IMAGES, size=(96, 64))
    out = open_out_folder(tmp_path / "photos", tmp_path / "out")
    prepare_dataset(out, PrepareOptions(resolution=64, quiet=True, class_noun="dog"))
    assert (out / "report.html").read_text(encoding="utf-8").count("data:image/") >= len(IMAGES)
    lorakit("data", "control", out, "--type", "mask")
    for format in ("imagefolder", "kohya", "webdataset", "parquet", "zip"):
        export_dataset(out, format, tmp_path / format)
    copied = manifest.load_manifest(tmp_path / "imagefolder")
    assert all(masks.read_record_mask(tmp_path / "imagefolder", record) for record in copied)
    import_dataset(tmp_path / "again", [out])
    again = manifest.load_manifest(tmp_path / "again")
    assert [record.caption for record in again] == [record.caption for record in manifest.load_manifest(out)]
    assert np.array_equal(decode.read_record_image(tmp_path / "again", again[2]), photo(2, (96, 64)))
    assert not (tmp_path / "again" / dataset_paths.IMAGES_FILE).exists()
    references = load_folder_references(out, tmp_path / "eval")
    assert references.folder == "../photos"
    assert next(iter(references.sources[1].open())).size == (96, 64)
    with pytest.raises(ConfigError, match="inside the dataset"):
        export_dataset(out, "kohya", tmp_path / "photos/export")


def test_images_that_moved_are_named_and_found_again_with_out(tmp_path: Path) -> None:
    fill(tmp_path / "one/photos", IMAGES, size=(96, 64))
    out = open_out_folder(tmp_path / "one/photos", tmp_path / "one/out")
    records = prepare_dataset(out, OPTIONS).records
    shutil.move(tmp_path / "one", tmp_path / "two")  # together: the link is relative
    assert prepare_dataset(tmp_path / "two/out", OPTIONS).records == records
    shutil.move(tmp_path / "two/photos", tmp_path / "elsewhere")
    for read in (prepare_dataset, lambda folder: decode.read_record_image(folder, records[0])):
        with pytest.raises(DataError, match="not there") as caught:
            read(tmp_path / "two/out")
        assert str(tmp_path / "two/photos") in str(caught.value)
        assert f"--out {tmp_path / 'two/out'}" in str(caught.value.remedy)
    words = ["--resolution", "64", "--class-noun", "dog", "--trigger", "sks"]
    command = ["data", "prepare", tmp_path / "elsewhere", "--out", tmp_path / "two/out", *words]
    assert lorakit(*command) == 0
    assert tuple(manifest.load_manifest(tmp_path / "two/out")) == records


def test_a_manifest_beside_the_images_is_the_start_of_the_one_in_out(tmp_path: Path) -> None:
    fill(tmp_path / "photos", IMAGES, size=(96, 64))
    prepare_dataset(tmp_path / "photos", OPTIONS)
    lorakit("data", "control", tmp_path / "photos", "--type", "mask")
    record, *others = manifest.load_manifest(tmp_path / "photos")
    by_model = manifest.Caption("a dog that a model saw", "model", model="m")
    manifest.save_manifest(
        tmp_path / "photos", [record, manifest.replace(others[0], captions=(by_model,)), others[1]]
    )
    out = open_out_folder(tmp_path / "photos", tmp_path / "out")
    shutil.rmtree(tmp_path / "photos/.lorakit-masks")
    result = prepare_dataset(out, OPTIONS)
    assert result.records[1].captions == (by_model,)
    assert all(masks.read_record_mask(out, record) is not None for record in result.records)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("photos/out", "inside the other"),
        (".", "inside the other"),
        ("other", "belongs to the images in"),
        ("used", "has other files: notes.txt"),
        ("dataset", "has other files: x.png"),
        ("con", "not a valid file name"),
        ("photos/a.png", "inside the other"),
    ],
)
def test_an_out_folder_that_cannot_be_used_is_refused(tmp_path: Path, name: str, words: str) -> None:
    fill(tmp_path / "photos", IMAGES, size=(96, 64))
    fill(tmp_path / "photos2", {"x.png": None}, size=(96, 64))
    open_out_folder(tmp_path / "photos2", tmp_path / "other")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_text("mine")
    prepare_dataset(fill(tmp_path / "dataset", {"x.png": None}, size=(96, 64)), OPTIONS)
    before = hashes(tmp_path)
    with pytest.raises(ConfigError, match=words):
        open_out_folder(tmp_path / "photos", tmp_path / name)
    assert hashes(tmp_path) == before


@pytest.mark.parametrize("text", ['{"images": 3}', "[]", "{}", '{"images": ""}', "no json"])
def test_a_damaged_link_to_the_images_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / dataset_paths.IMAGES_FILE).write_text(text)
    with pytest.raises(DataError, match=dataset_paths.IMAGES_FILE):
        prepare_dataset(tmp_path, OPTIONS)


def test_a_folder_on_another_drive_is_named_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_drives(path: object, start: object) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(folders.os.path, "relpath", two_drives)
    fill(tmp_path / "photos", IMAGES, size=(96, 64))
    out = open_out_folder(tmp_path / "photos", tmp_path / "deep/out")
    value = json.loads((out / dataset_paths.IMAGES_FILE).read_text())
    assert value == {"images": (tmp_path / "photos").resolve().as_posix()}
    shutil.move(out, tmp_path / "moved")
    assert dataset_paths.image_folder(tmp_path / "moved").samefile(tmp_path / "photos")


def test_a_run_is_kept_out_of_the_images_of_its_dataset(tmp_path: Path) -> None:
    fill(tmp_path / "photos", IMAGES, size=(96, 64))
    first = open_out_folder(tmp_path / "photos", tmp_path / "first")
    second = open_out_folder(tmp_path / "photos", tmp_path / "second")
    for out in (first, second):
        prepare_dataset(out, OPTIONS)
    inside = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", first, tmp_path / "photos/run")
    with pytest.raises(ConfigError, match="one of `out` and the dataset is inside the other"):
        runs.train(inside)
    twice = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", first, tmp_path / "run")
    with pytest.raises(ConfigError, match="same folder of images"):
        runs.train(twice, f"validate.folder={second}", "validate.every=1")

"""Preparation of whole folders: nothing is lost, changed or done twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from data_tools import scan
from data_tools.prepare import Dataset, PrepareOptions, prepare_dataset
from lorakit import manifest
from lorakit.core.errors import ConfigError, DataError, LorakitError
from lorakit.imaging import decode
from lorakit.imaging.image_reader import ImageSource
from tests.data_tools.folders import fill, hashes, photo, written

QUIET = PrepareOptions(resolution=128, quiet=True)


def options(**changes: object) -> PrepareOptions:
    return PrepareOptions(
        **{"resolution": 128, "quiet": True, "trigger": "sks", "class_noun": "dog", **changes}
    )  # type: ignore[arg-type]


def reasons(result: Dataset) -> dict[str, str]:
    return {r.file: scan.note_code(r.reason) for r in result.records if not r.keep}


@pytest.fixture
def ugly(tmp_path: Path) -> Path:
    """Two good images among every kind of bad file."""
    folder = fill(tmp_path / "ugly", {"good.png": None, "sub/wide.jpg": None}, size=(400, 200))
    data = (folder / "sub/wide.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) * 8 // 10])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<!doctype html><html>404</html>")
    (folder / "lfs.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (folder / "draw.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "new.jxl").write_bytes(b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (20, 4000)).save(folder / "line.png")
    photo(8).save(folder / "film.gif", save_all=True, append_images=[photo(9)])
    os.mkfifo(folder / "pipe.png")
    outside = tmp_path / "outside.png"
    photo(3).save(outside)
    (folder / "out.png").symlink_to(outside)
    (folder / "gone.png").symlink_to(folder / "nothing")
    fill(folder / ".cache", {"thumb.png": "x"})
    (folder / "loop").symlink_to(folder)
    return folder


def test_every_file_is_used_or_reported(ugly: Path) -> None:
    before = hashes(ugly)
    result = prepare_dataset(ugly, options())
    assert reasons(result) == {
        "cut.jpg": "truncated",
        "zero.jpg": "empty",
        "page.jpg": "html_or_xml",
        "lfs.png": "lfs_pointer",
        "draw.svg": "svg",
        "new.jxl": "no_decoder",
        "dot.png": "too_small",
        "line.png": "extreme_aspect_ratio",
        "film.gif": "animated",
        "pipe.png": "not_a_file",
        "out.png": "symlink_outside",
        "gone.png": "dangling_symlink",
    }
    assert [record.file for record in result.kept] == ["good.png", "sub/wide.jpg"]
    assert "linked_folder" in {finding.code for finding in result.findings}
    assert hashes(ugly) == before
    assert set(written(ugly)) == {"manifest.jsonl", "metadata.jsonl", "report.html", "report.json"}
    assert {path.name for path in ugly.iterdir() if path.name.startswith(".")} == {".cache"}
    assert tuple(manifest.load_manifest(ugly)) == tuple(sorted(result.records, key=lambda r: r.file))


def test_a_second_run_gives_the_same_bytes_and_decodes_nothing(
    ugly: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_dataset(ugly, options())
    first = written(ugly)
    again: list[str] = []
    real = decode.open_source

    def count(data: bytes, *, where: str, **more: object) -> ImageSource:
        again.append(where)
        return real(data, where=where, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "open_source", count)
    prepare_dataset(ugly, options())
    assert written(ugly) == first
    assert not {"good.png", "sub/wide.jpg"} & set(again)
    prepare_dataset(ugly, options(rescan=True))
    assert written(ugly) == first
    assert {"good.png", "sub/wide.jpg"} <= set(again)


def test_only_the_record_of_a_changed_image_changes(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": "one", "b.png": "two"})
    first = {record.file: record for record in prepare_dataset(folder, QUIET).records}
    stat = os.stat(folder / "a.png")
    photo(77).save(folder / "a.png")
    os.utime(folder / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # an edit that hides its time
    second = {record.file: record for record in prepare_dataset(folder, QUIET).records}
    assert second["b.png"] == first["b.png"]
    assert second["a.png"].content_hash != first["a.png"].content_hash
    assert decode.read_record_image(folder, second["a.png"]).size == (320, 240)


def test_the_record_describes_the_image_for_training(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": "one"}, size=(288, 224))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(1, (288, 224)).save(folder / "turned.jpg", exif=exif)
    (folder / "turned.txt").write_text("two")
    plain, turned = prepare_dataset(folder, QUIET).records
    assert plain.size == (288, 224)
    assert turned.size == (224, 288)
    for record in (plain, turned):
        assert record.crop is not None
        assert record.bucket is not None
        image = decode.crop_and_resize(decode.read_record_image(folder, record), record.crop, record.bucket)
        assert image.size == record.bucket
    assert [note.split(":")[0] for note in turned.notes] == ["exif_rotated"]


def test_small_images_are_used_with_a_note(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": "one"}, size=(64, 64))
    (record,) = prepare_dataset(folder, QUIET).kept
    assert record.bucket == (128, 128)
    assert "upscaled: 2.00 times" in " ".join(record.notes)


def test_a_decision_of_the_user_stays_in_the_next_run(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": "one", "b.png": "two"})
    records = list(prepare_dataset(folder, QUIET).records)
    path = folder / manifest.MANIFEST_FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] |= {"keep": False, "reason": "out of focus, says Ann"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = prepare_dataset(folder, QUIET).records
    assert (again[0].keep, again[0].reason) == (False, "out of focus, says Ann")
    assert again[0].bucket is None
    assert again[1] == records[1]


def test_a_repaired_file_is_used_again(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": "one", "b.png": "two"})
    good = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(good[:2000])
    assert reasons(prepare_dataset(folder, QUIET)) == {"a.png": "truncated"}
    (folder / "a.png").write_bytes(good)
    assert reasons(prepare_dataset(folder, QUIET)) == {}


def test_a_removed_file_is_reported(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": "one", "b.png": "two"})
    prepare_dataset(folder, QUIET)
    (folder / "b.png").unlink()
    result = prepare_dataset(folder, QUIET)
    assert result.removed_files == ("b.png",)
    assert "b.png" in result.summary()


def test_transparent_parts_show_the_background_color(tmp_path: Path) -> None:
    rgba = photo(0).convert("RGBA")
    rgba.putalpha(0)
    rgba.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    for color in ((255, 255, 255), (0, 0, 0)):
        (record,) = prepare_dataset(tmp_path, options(background=color)).kept
        assert record.background == decode.color_name(color)
        assert decode.read_record_image(tmp_path, record).getextrema() == tuple(
            (value, value) for value in color
        )


def test_shared_caption_files_are_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": None, "a.jpg": "whose?", "b.png": "mine"})
    assert reasons(prepare_dataset(folder, QUIET)) == {
        "a.png": "shared_caption_file",
        "a.jpg": "shared_caption_file",
    }


def test_unusual_names_work(tmp_path: Path) -> None:
    names = [
        "a b.png",
        "\U0001f600.png",
        "-rf.png",
        "x\ny.png",
        "%s.png",
        "e\u0301.png",
        "\u00e9.png",
        "t..png",
    ]
    names += ["n" * 251 + ".png", "<img onerror=alert(1)>.png", "noending"]
    for seed, name in enumerate(names):
        photo(seed).save(tmp_path / name, format="PNG")
    result = prepare_dataset(tmp_path, options())
    assert {record.file for record in result.kept} == set(names)
    assert "name_differs_by_case" in {finding.code for finding in result.findings}


def test_several_processes_give_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path, {f"{index}.png": f"picture {index}" for index in range(24)}, size=(96, 64))
    (folder / "bad.png").write_bytes(b"GIF89a")
    monkeypatch.setattr(scan, "MIN_FILES_FOR_POOL", 8)
    parallel = prepare_dataset(folder, options(workers=2, rescan=True))
    assert parallel.records == prepare_dataset(folder, options(workers=1, rescan=True)).records
    assert len(parallel.kept) == 24


def test_an_interrupted_scan_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path, {f"{index}.png": f"picture {index}" for index in range(6)}, size=(64, 64))
    monkeypatch.setattr(scan, "MIN_FILES_FOR_POOL", 1)
    seen: list[str] = []
    real = decode.open_source

    def stop(data: bytes, *, where: str, **more: object) -> ImageSource:
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(where)
        return real(data, where=where, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "open_source", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(folder, options(workers=1))
    assert not (folder / manifest.MANIFEST_FILE).exists()
    journal = folder / scan.SCAN_JOURNAL
    journal.write_bytes(journal.read_bytes()[:-10])  # the crash tore the last line
    seen.clear()
    prepare_dataset(folder, options(workers=1, report=False))
    assert seen == ["3.png", "4.png", "5.png"]
    assert not journal.exists()
    resumed = written(folder)
    monkeypatch.undo()
    prepare_dataset(folder, options(rescan=True, report=False))
    assert written(folder) == resumed


def test_the_summary_has_the_counts(ugly: Path) -> None:
    result = prepare_dataset(ugly, options())
    counts = result.counts()
    assert (counts["images"], counts["kept"], sum(counts["excluded"].values())) == (14, 2, 12)
    assert counts["captions"] == {"template": 2}
    assert sum(counts["buckets"].values()) == 2
    assert "14 images, 2 kept, 12 excluded" in result.summary()
    assert "cut.jpg: truncated" in result.summary()


def test_quiet_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare_dataset(fill(tmp_path, {"a.png": "one"}), QUIET)
    assert capfd.readouterr() == ("", "")


def _fails(folder: Path, kind: type[LorakitError], words: str, **changes: object) -> None:
    before = sorted(folder.rglob("*")) if folder.exists() else []
    with pytest.raises(kind, match=words) as caught:
        prepare_dataset(folder, options(**changes))
    assert caught.value.remedy
    assert (sorted(folder.rglob("*")) if folder.exists() else []) == before


def test_impossible_options_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    _fails(tmp_path / "absent", ConfigError, "does not exist")
    _fails(fill(tmp_path / "x", {"a.png": None}) / "a.png", ConfigError, "is not a folder")
    (tmp_path / "empty").mkdir()
    _fails(tmp_path / "empty", DataError, "no images")
    (tmp_path / "empty" / "readme.md").write_text("x")
    _fails(tmp_path / "empty", DataError, "readme.md")
    (tmp_path / "empty" / "a.jpg").write_bytes(b"")
    _fails(tmp_path / "empty", DataError, "none of the 1 images can be used")
    _fails(tmp_path / "x", ConfigError, "multiple", resolution=100)
    _fails(tmp_path / "x", ConfigError, "bucket mode", bucket_mode="best")
    _fails(tmp_path / "x", ConfigError, "batch", batch_size=0)


def test_a_damaged_manifest_is_not_overwritten(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": "one"})
    (folder / manifest.MANIFEST_FILE).write_text("{broken\n")
    with pytest.raises(DataError, match="line 1"):
        prepare_dataset(folder, QUIET)
    assert (folder / manifest.MANIFEST_FILE).read_text() == "{broken\n"


def test_a_name_that_is_not_utf8_is_reported_and_the_others_are_prepared(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": "one", "b.png": "two"})
    os.rename(folder / "a.png", os.fsencode(folder) + b"/\xff.png")
    os.rename(folder / "a.txt", os.fsencode(folder) + b"/\xff.txt")
    (folder / "C:\\x.png").write_bytes((folder / "b.png").read_bytes())  # another folder, to Windows
    result = prepare_dataset(folder, QUIET)
    assert [record.file for record in result.records] == ["b.png"]
    (finding,) = [finding for finding in result.findings if finding.code == "unusable_name"]
    assert finding.level == "error"
    assert finding.files == ("C:\\\\x.png", "\\udcff.png", "\\udcff.txt")
    assert "unusable_name" in result.summary()
    (folder / "b.png").unlink()
    with pytest.raises(DataError, match=r"no images; it holds .*udcff"):
        prepare_dataset(folder, QUIET)


def test_image_folder_reads_the_prepared_dataset(ugly: Path, tmp_path: Path) -> None:
    import datasets

    prepare_dataset(ugly, options())
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(ugly), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.column_names == ["image", "text"]
    assert [row["text"] for row in loaded] == ["a photo of sks dog"] * 2
    assert [row["image"].size for row in loaded] == [(400, 200)] * 2

"""Folders, snapshots, archives and webdatasets: every file is imported, or named with the reason."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from data_tools.formats.column_roles import ColumnChoice
from data_tools.formats.import_export import import_dataset
from data_tools.formats.transfer_result import TransferResult
from lorakit.core.errors import ConfigError
from tests.data_tools.formats.tables import jpeg, mask_png, write_table

JPEGS = [jpeg(number) for number in range(4)]


def write_files(folder: Path, **files: bytes) -> Path:
    for name, data in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def reasons(done: TransferResult) -> dict[str, str]:
    return {name: entry["reason"] for entry in done.left_out.to_json() for name in entry["names"]}


def test_every_file_of_a_folder_is_imported_or_named(tmp_path: Path) -> None:
    names = {
        "a.jpg": JPEGS[0],
        "a.txt": b"a dog",
        "sub__b.JPG": JPEGS[1],
        "film.mp4": b"x",
        "captions.csv": b"file,text\n",
        "c.caption": b"x",
    }
    others = {"notes.md": b"x", "README.md": b"x", ".git__config": b"x", "@eaDir__a.jpg": JPEGS[2],
              "d.icloud": b"x", "e.7z": b"7z", "f.cls": b"3", ".hidden.jpg": JPEGS[3]}  # fmt: skip
    done = import_dataset(tmp_path / "out", [write_files(tmp_path / "in", **names, **others)])
    assert set(files(tmp_path / "out")) == {name.replace("__", "/") for name in names}
    assert set(reasons(done)) == {name.split("__")[0] for name in others}
    assert "class number" in reasons(done)["f.cls"]
    assert "source of its own" in reasons(done)["e.7z"]
    assert "cloud" in reasons(done)["d.icloud"]


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """Return a snapshot in the hub's cache, made of links to blobs."""
    repository = tmp_path / "hub/datasets--me--dogs"
    folder = repository / "snapshots/abc"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    content = {"a.jpg": JPEGS[0], "a.txt": b"a dog", "sub/b.jpg": JPEGS[1]}
    for number, (name, data) in enumerate(content.items()):
        write_files(repository / "blobs", **{f"blob{number}": data})
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(repository / f"blobs/blob{number}")
    return folder


@pytest.mark.parametrize("level", [0, 2], ids=["snapshot", "repository"])
def test_a_snapshot_of_the_hub_is_imported_through_its_links(
    snapshot: Path, tmp_path: Path, level: int
) -> None:
    source = (snapshot, *snapshot.parents)[level]
    done = import_dataset(tmp_path / "out", [source])
    assert files(tmp_path / "out") == {"a.jpg": JPEGS[0], "a.txt": b"a dog", "sub/b.jpg": JPEGS[1]}
    assert not done.left_out


def test_a_snapshot_without_links_is_imported_too(snapshot: Path, tmp_path: Path) -> None:
    shutil.copytree(snapshot, tmp_path / "windows/datasets--me--dogs/snapshots/abc")
    (tmp_path / "windows/datasets--me--dogs/blobs").mkdir()
    import_dataset(tmp_path / "out", [tmp_path / "windows/datasets--me--dogs"])
    assert set(files(tmp_path / "out")) == {"a.jpg", "a.txt", "sub/b.jpg"}
    with pytest.raises(ConfigError, match="several repositories"):
        import_dataset(tmp_path / "out2", [tmp_path / "windows"])


def test_links_count_inside_the_folder_and_are_named_outside(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", **{"real__a.jpg": JPEGS[0]})
    (tmp_path / "b.jpg").write_bytes(JPEGS[1])
    for name, target in (("a.jpg", "real/a.jpg"), ("b.jpg", "../b.jpg"), ("c.jpg", "nowhere"), ("d", "real")):
        (folder / name).symlink_to(target)
    done = import_dataset(tmp_path / "out", [folder])
    assert set(files(tmp_path / "out")) == {"a.jpg", "real/a.jpg"}
    assert set(reasons(done)) == {"b.jpg", "c.jpg", "d"}
    assert "--follow-links" in reasons(done)["b.jpg"]
    done = import_dataset(tmp_path / "out", [folder], follow_links=True)
    assert files(tmp_path / "out")["b.jpg"] == JPEGS[1]
    assert set(reasons(done)) == {"c.jpg", "d"}


def test_a_folder_of_links_out_of_it_says_why_there_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(JPEGS[1])
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.jpg").symlink_to("../b.jpg")
    with pytest.raises(Exception, match=r"no image; not used: .*b\.jpg.*--follow-links"):
        import_dataset(tmp_path / "out", [tmp_path / "in"])


def test_a_table_without_images_does_not_hide_the_images_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, data in enumerate(JPEGS[:2]):
        (folder / f"{number}.jpg").write_bytes(data)
    write_table(folder / "train.parquet", text=["a dog", "a cat"])
    done = import_dataset(tmp_path / "out", [folder])
    assert set(files(tmp_path / "out")) == {"0.jpg", "1.jpg"}
    assert "without images" in reasons(done)["train.parquet"]
    write_table(folder / "train.parquet", image=["1.jpg"], text=["a cat"])
    done = import_dataset(tmp_path / "named", [folder])
    assert sorted(files(tmp_path / "named")) == ["0.jpg", "00000000-1.jpg", "00000000-1.txt"]
    assert not reasons(done)


def test_splits_of_tables_get_folders_and_can_be_chosen(tmp_path: Path) -> None:
    for name in ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"):
        write_table(tmp_path / f"in/{name}.parquet", image=["photo 1"], text=[name])
    write_files(tmp_path / "in", **{"README.md": b"x", "teaser.jpg": JPEGS[0]})
    done = import_dataset(tmp_path / "out", [tmp_path / "in"])
    assert done.log.splits == ["test", "train"]
    assert sorted(name.split("/")[0] for name in files(tmp_path / "out")) == ["test"] * 2 + ["train"] * 4
    assert "splits     test, train" in done.summary()
    assert set(reasons(done)) == {"README.md", "teaser.jpg"}
    done = import_dataset(tmp_path / "one", [tmp_path / "in"], splits=["test"])
    assert (done.num_images, reasons(done)["train"]) == (1, "not chosen with --split")
    with pytest.raises(ConfigError, match="no split 'dev'") as caught:
        import_dataset(tmp_path / "two", [tmp_path / "in"], splits=["dev"])
    assert "test, train" in str(caught.value.remedy)


def test_splits_of_folders_are_said_and_can_be_chosen(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", **{"train__a.jpg": JPEGS[0], "validation__b.jpg": JPEGS[1]})
    assert import_dataset(tmp_path / "out", [folder]).log.splits == ["train", "validation"]
    import_dataset(tmp_path / "one", [folder], splits=["train"])
    assert set(files(tmp_path / "one")) == {"train/a.jpg"}


@pytest.mark.parametrize("suffix", [".arrow", ".feather"])
def test_arrow_files_and_streams_are_read(tmp_path: Path, suffix: str) -> None:
    table = pyarrow.table({"image": [JPEGS[0]], "text": ["a dog"]})
    opener = pyarrow.ipc.new_stream if suffix == ".arrow" else pyarrow.ipc.new_file
    with opener(str(tmp_path / f"t{suffix}"), table.schema) as writer:
        writer.write_table(table)
    import_dataset(tmp_path / "out", [tmp_path / f"t{suffix}"])
    assert files(tmp_path / "out") == {"00000000.jpg": JPEGS[0], "00000000.txt": b"a dog"}


def test_two_tables_of_the_same_rows_get_a_folder_each(tmp_path: Path) -> None:
    tables = [write_table(tmp_path / f"{name}/x.parquet", image=["photo 1"], text=[name]) for name in "ab"]
    import_dataset(tmp_path / "out", tables)
    assert {name.split("/")[0] for name in files(tmp_path / "out")} == {"x", "x-2"}


# ---- archives ----------------------------------------------------------------------------------------------


def tar(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_sample_of_an_edit_trains_on_the_edited_image(tmp_path: Path) -> None:
    described = json.dumps({"instruction": "make it red", "score": 3}).encode()
    members = {
        "7.input.jpg": JPEGS[0],
        "7.edited.jpg": JPEGS[1],
        "7.mask.png": mask_png(),
        "7.json": described,
    }
    done = import_dataset(tmp_path / "out", [tar(tmp_path / "a.tar", **members, **{"7.cls": b"1"})])
    assert files(tmp_path / "out") == {
        "7.jpg": JPEGS[1], "7.source.jpg": JPEGS[0], "7-masklabel.png": mask_png(), "7.txt": b"make it red",
    }  # fmt: skip
    assert set(reasons(done)) == {"score", "7.cls"}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"1.jpg": JPEGS[0], "1.txt": b"x", "1.json": b"{}"}, {"1.jpg", "1.txt", "1.json"}),
        ({"1.image.jpg": JPEGS[0], "1.prompt.txt": b"a dog"}, {"1.jpg", "1.txt"}),
        ({"1.jpg": JPEGS[0], "1.text": b"a dog"}, {"1.jpg", "1.txt"}),
        ({"1.jpg": JPEGS[0], "1.caption_0.txt": b"a", "1.caption_1.txt": b"b"}, {"1.jpg", "1.json"}),
        (
            {"1.0.jpg": JPEGS[0], "1.1.jpg": JPEGS[1], "1.txt": b"both"},
            {"1.0.jpg", "1.0.txt", "1.1.jpg", "1.1.txt"},
        ),
        ({"a.x.jpg": JPEGS[0], "a.x.txt": b"x", "a.y.jpg": JPEGS[1]}, {"a.x.jpg", "a.x.txt", "a.y.jpg"}),
    ],
)
def test_texts_of_a_sample_reach_its_images(
    tmp_path: Path, members: dict[str, bytes], expected: set[str]
) -> None:
    import_dataset(tmp_path / "out", [tar(tmp_path / "a.tar", **members)])
    assert set(files(tmp_path / "out")) == expected


def test_the_user_chooses_the_image_of_a_sample(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar", **{"1.left.jpg": JPEGS[0], "1.right.jpg": JPEGS[1], "1.txt": b"x"})
    import_dataset(tmp_path / "out", [archive], choice=ColumnChoice(images=("right",)))
    assert files(tmp_path / "out") == {"1.jpg": JPEGS[1], "1.txt": b"x"}


@pytest.mark.parametrize("says_utf8", [True, False])
@pytest.mark.parametrize("name", ["Übung/größe.jpg", "写真/犬.jpg"])
def test_names_in_zips_are_utf8_whether_they_say_so_or_not(
    tmp_path: Path, name: str, says_utf8: bool
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, JPEGS[0])
    data = (tmp_path / "a.zip").read_bytes()
    if not says_utf8:  # as other programs write it
        data = data.replace(b"\x14\x00\x00\x08", b"\x14\x00\x00\x00")
    (tmp_path / "a.zip").write_bytes(data)
    import_dataset(tmp_path / "out", [tmp_path / "a.zip"])
    assert list(files(tmp_path / "out")) == [name]


def test_archives_in_a_folder_are_unpacked_beside_its_images(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", **{"a.jpg": JPEGS[0]})
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr("b.jpg", JPEGS[1])
        archive.writestr("inner.zip", b"x")
    done = import_dataset(tmp_path / "out", [folder])
    assert set(files(tmp_path / "out")) == {"a.jpg", "more/b.jpg"}
    assert "source of its own" in reasons(done)["inner.zip"]


def test_an_interrupted_import_of_a_table_continues(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"image": ["photo 1", "photo 2"], "text": ["a", "b"]}
    table = write_table(tmp_path / "t.parquet", **columns)
    import_dataset(tmp_path / "whole", [table])
    import_dataset(tmp_path / "part", [table])
    for path in sorted((tmp_path / "part").iterdir())[1:]:
        path.unlink()  # as after an interruption
    import_dataset(tmp_path / "part", [table])
    assert files(tmp_path / "part") == files(tmp_path / "whole")

"""Faults of files and names (22 to 31 of fault_catalogue.md), each through `prepare` beside a good image."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from data_tools import scan
from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit import manifest
from lorakit.core.errors import DataError
from lorakit.imaging import decode
from lorakit.imaging.decode import ImageError
from tests.data_tools.folders import fill, photo
from tests.data_tools.one_bad_file import GOOD, encoded, exclusion_reason, kept, run


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    place = os.getcwd()
    os.chdir(path.parent)  # socket paths are limited to about 100 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(place)


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: reading it never ends
    except PermissionError:
        pytest.skip("only root may make a device here")


@pytest.mark.parametrize("make", [_pipe, _socket, _device])
def test_pipes_sockets_and_devices_do_not_block(tmp_path: Path, make: object) -> None:
    make(tmp_path / "x.png")  # type: ignore[operator]
    began = time.monotonic()
    assert exclusion_reason(tmp_path, "x.png").split(":")[0] in ("not_a_file", "unreadable")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("target", ["nothing.png", "x.png"], ids=["dangling", "itself"])
def test_a_dangling_link_is_excluded(tmp_path: Path, target: str) -> None:
    (tmp_path / "x.png").symlink_to(target)
    assert exclusion_reason(tmp_path, "x.png").startswith("dangling_symlink:")


def test_a_link_out_of_the_folder_is_excluded(tmp_path: Path) -> None:
    photo(3).save(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.png").symlink_to(tmp_path / "secret.png")
    assert exclusion_reason(tmp_path / "data", "x.png").startswith("symlink_outside:")
    (tmp_path / "data/x.png").unlink()
    photo(4).save(tmp_path / "data/real.png")
    (tmp_path / "data/inside.png").symlink_to("real.png")
    assert kept(
        tmp_path / "data", "inside.png"
    ).content_hash  # within the folder, a link is as good as a file


def test_a_folder_that_links_to_itself_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/sub/loop").symlink_to(tmp_path / "data")
    result = run(tmp_path / "data")
    assert [record.file for record in result.records] == [GOOD]
    assert [f.files for f in result.findings if f.code == "linked_folder"] == [("sub/loop",)]


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder, and a user without permission to read all of it, also if the tests run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(was)
        shutil.rmtree(folder)


def test_an_unreadable_file_is_excluded(nobody: Path) -> None:
    photo(1).save(nobody / "x.png")
    (nobody / "x.png").chmod(0)
    photo(99).save(nobody / GOOD)
    result = prepare_dataset(
        nobody, PrepareOptions(resolution=64, class_noun="dog", report=False, quiet=True)
    )
    assert {r.file: scan.note_code(r.reason) for r in result.records} == {"x.png": "unreadable", GOOD: ""}


def test_an_unreadable_folder_is_reported(nobody: Path) -> None:
    (nobody / "closed").mkdir(0)
    photo(99).save(nobody / GOOD)
    result = prepare_dataset(
        nobody, PrepareOptions(resolution=64, class_noun="dog", report=False, quiet=True)
    )
    (nobody / "closed").chmod(0o700)
    assert [f.files for f in result.findings if f.code == "unreadable_folder"] == [("closed/",)]
    assert "closed/" in result.summary()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_changed_file_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    photo(1).save(tmp_path / f"a.{suffix}")
    record = kept(tmp_path, f"a.{suffix}")
    photo(2).save(tmp_path / f"a.{suffix}")
    with pytest.raises(ImageError, match="has changed since the dataset was prepared") as caught:
        decode.read_record_image(tmp_path, record)
    assert (caught.value.code, caught.value.exit_code) == ("changed", 3)
    assert f"a.{suffix}" in str(caught.value)


@pytest.mark.parametrize(("change", "words"), [("edit", "has changed since"), ("remove", "cannot read")])
def test_training_does_not_start_on_changed_or_missing_files(tmp_path: Path, change: str, words: str) -> None:
    from lorakit.data import items

    record = kept(tmp_path, "a.png", encoded(photo(1), "PNG"))
    items.check_unchanged(tmp_path, [record])
    (tmp_path / "a.png").unlink() if change == "remove" else photo(2).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=words) as caught:
        items.check_unchanged(tmp_path, [record])
    assert "a.png" in str(caught.value.where)
    assert caught.value.exit_code == 3


def test_another_jpeg_comment_is_not_a_change(tmp_path: Path) -> None:
    photo(1).save(tmp_path / "a.jpg")
    record = kept(tmp_path, "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xfe\0\x08edited"[:10] + data[2:])
    assert decode.pixel_hash(decode.read_record_image(tmp_path, record)) == decode.pixel_hash(
        decode.decode_image(tmp_path / "a.jpg")
    )


def test_a_removed_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    record = kept(tmp_path, "a.png", encoded(photo(1), "PNG"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError) as caught:
        decode.read_record_image(tmp_path, record)
    assert (caught.value.code, caught.value.exit_code) == ("missing", 3)
    assert run(tmp_path).removed_files == ("a.png",)


def test_images_that_share_a_caption_file_are_excluded(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "a.jpg": None, "A.JPG": None})
    (tmp_path / "a.txt").write_text("whose?")
    result = run(tmp_path)
    refused = {record.file: scan.note_code(record.reason) for record in result.records if not record.keep}
    assert refused == {"a.png": "shared_caption_file", "a.jpg": "shared_caption_file"}
    assert [f.files for f in result.findings if f.code == "name_differs_by_case"] == [("A.JPG", "a.jpg")]


@pytest.mark.parametrize(
    "stem",
    [
        "a b",
        "\U0001f600",
        "e\u0301",
        "\u00e9",
        "n" * 251,
        "-rf",
        "x\ny",
        "%s",
        "dot.",
        "\x1b[2J",
        "'; rm -rf",
    ],
)
def test_unusual_names_work_and_are_escaped_in_the_summary(tmp_path: Path, stem: str) -> None:
    name = f"{stem}.png"
    photo(1).save(tmp_path / name)
    result = run(tmp_path)
    assert name in [record.file for record in result.kept]
    assert [record.file for record in manifest.load_manifest(tmp_path)] == sorted((name, GOOD))
    (tmp_path / name).write_bytes(b"")
    shown = run(tmp_path).summary()
    assert "empty" in shown
    assert all(letter.isprintable() for letter in shown.replace("\n", ""))
    assert len(shown.splitlines()) == len([line for line in shown.splitlines() if line.strip()])


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    data = encoded(Image.effect_noise((16, 16), 90), "PNG")
    program = (
        "import re, sys; from data_tools import listing, scan;"
        "files = listing.list_dataset(sys.argv[1]);"
        "records = scan.scan_images(files, scan.ScanOptions(workers=1));"
        "status = open('/proc/self/status').read();"  # ru_maxrss would start with the size of the tests
        "print(len(records), re.search(r'VmHWM:\\s+(\\d+)', status)[1])"
    )
    peaks = {}
    for count in (100, 1600):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.png").write_bytes(data + number.to_bytes(4, "big"))
        ran = subprocess.run(
            [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
        )
        found, peaks[count] = map(int, ran.stdout.split())
        assert found == count
    assert (peaks[1600] - peaks[100]) / 1500 < 4  # KiB an image

"""The fault catalogue's image entries (1-31), each through `prepare` beside a good picture.

Set aside means: named in the manifest with its reason, counted, untouched, and the good picture is kept.
What the decoder makes of the pixels themselves is in tests/test_images.py under the same numbers.
"""

from __future__ import annotations

import io
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest
from folders import fill, hashes, photo
from PIL import Image, ImageCms, PngImagePlugin

from data_tools import scan
from data_tools.prepare import PrepareOptions, PrepareResult, check_only, prepare
from lorakit import images, manifest, opening
from lorakit.images import ImageError
from lorakit.manifest import Record

GOOD = "good.png"


def run(folder: Path, **changes: object) -> PrepareResult:
    """Prepare, with a good picture among the rest; the user's files are as before."""
    folder.mkdir(exist_ok=True)
    photo(99).save(folder / GOOD)
    before = hashes(folder)
    given = {"resolution": 64, "class_noun": "dog", "report": False, "quiet": True, **changes}
    result = prepare(folder, PrepareOptions(**given))  # type: ignore[arg-type]
    assert hashes(folder) == before
    assert GOOD in [record.file for record in result.kept]
    return result


def set_aside(folder: Path, name: str, data: bytes | None = None, **changes: object) -> str:
    """The reason for which a file is set aside; it is in the manifest, counted, and told in the summary."""
    folder.mkdir(exist_ok=True)
    if data is not None:
        (folder / name).write_bytes(data)
    result = run(folder, **changes)
    (record,) = [record for record in manifest.load(folder) if record.file == name]
    assert not record.keep
    assert result.counts()["quarantined"] == {scan.code_of(record.reason): 1}
    assert f"{name}: {record.reason}" in result.summary()
    assert scan.code_of(record.reason) in scan.REASONS
    return record.reason or ""


def kept(folder: Path, name: str, data: bytes | None = None, **changes: object) -> Record:
    """The record of a file that is used."""
    folder.mkdir(exist_ok=True)
    if data is not None:
        (folder / name).write_bytes(data)
    (record,) = [record for record in run(folder, **changes).kept if record.file == name]
    assert images.read(folder, record).size == record.size
    return record


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def codes(record: Record) -> set[str]:
    return {scan.code_of(note) for note in record.notes}


def test_01_an_empty_file(tmp_path: Path) -> None:
    assert set_aside(tmp_path, "a.jpg", b"").startswith("empty:")


@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"], ids=["cut", "cut and closed"])
def test_02_a_jpeg_cut_at_four_fifths(tmp_path: Path, ending: bytes) -> None:
    data = encoded(photo(1), "JPEG")
    data = data[: len(data) * 8 // 10] + ending
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # Pillow's own check passes
    assert set_aside(tmp_path, "a.jpg", data).startswith("truncated:")


def test_03_a_cut_png(tmp_path: Path) -> None:
    data = encoded(photo(1), "PNG")
    assert set_aside(tmp_path, "a.png", data[: len(data) * 8 // 10]).startswith("truncated:")


def test_04_a_png_named_jpg_is_used_and_noted(tmp_path: Path) -> None:
    assert "suffix" in codes(kept(tmp_path, "a.jpg", encoded(photo(1), "PNG")))


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"<html><head></head>Not Found</html>", "markup"), (b'{"message": "Forbidden"}', "json")],
)
def test_05_a_page_or_answer_saved_as_jpg(tmp_path: Path, data: bytes, code: str) -> None:
    assert set_aside(tmp_path, "a.jpg", data).startswith(f"{code}:")


def test_06_a_git_lfs_pointer_says_so(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    assert "git-lfs" in set_aside(tmp_path, "a.jpg", pointer)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_07_a_turned_photo_is_measured_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    record = kept(tmp_path, "a.jpg", encoded(photo(1, (96, 64)), "JPEG", exif=exif))
    assert record.size == ((96, 64) if orientation < 5 else (64, 96))
    assert ("rotated" in codes(record)) is (orientation > 1)


def test_08_a_broken_exif_block_is_ignored(tmp_path: Path) -> None:
    data = encoded(photo(1), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 400)
    assert "broken_exif" in codes(kept(tmp_path, "a.jpg", data))


def test_09_hidden_colour_is_not_in_what_training_reads(tmp_path: Path) -> None:
    hidden = photo(1).convert("RGBA")
    hidden.putalpha(0)
    record = kept(tmp_path, "a.png", encoded(hidden, "PNG"), background=(1, 2, 3))
    assert images.read(tmp_path, record).getextrema() == ((1, 1), (2, 2), (3, 3))
    assert record.phash is None  # nor in what finds duplicates


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_10_grey_and_palettes_with_transparency(tmp_path: Path, mode: str) -> None:
    image = photo(1).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 160, 240))
    record = kept(tmp_path, "a.png", encoded(image.quantize() if mode == "P" else image.convert(mode), "PNG"))
    assert images.read(tmp_path, record).crop((4, 4, 150, 230)).getextrema() == ((255, 255),) * 3
    assert "alpha" in codes(record)


def test_11_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    row = b"".join(value.to_bytes(2, "big") for value in (65535, 256, 0, 32768) * 16)
    record = kept(tmp_path, "a.png", hostile.png(64, 64, 16, 0, b"\0" + row, 64))
    assert [images.read(tmp_path, record).getpixel((x, 0))[0] for x in range(4)] == [255, 1, 0, 128]


def test_12_cmyk(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    record = kept(tmp_path, "a.jpg", encoded(ink, "JPEG", quality=95))
    red = images.read(tmp_path, record).getpixel((9, 9))
    assert max(abs(a - b) for a, b in zip(red, (255, 0, 0), strict=True)) <= 3
    assert "cmyk" in codes(record)


def test_13_a_profile_is_obeyed_and_noted(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    broken = encoded(photo(1), "JPEG", icc_profile=b"nonsense" * 20)
    assert "broken_icc" in codes(kept(tmp_path / "x", "a.jpg", broken))
    assert "broken_icc" in codes(kept(tmp_path / "y", "a.png", encoded(photo(1), "PNG", icc_profile=profile)))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_14_animations(tmp_path: Path, form: str) -> None:
    frames = [photo(seed, (64, 48)) for seed in range(3)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert "3 frames" in set_aside(tmp_path, f"a.{form.lower()}", data)
    assert kept(tmp_path, f"a.{form.lower()}", first_frame=True).first_frame


def test_15_pages(tmp_path: Path) -> None:
    pages = [photo(seed, (64, 48)) for seed in range(3)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert set_aside(tmp_path, "a.tiff", data).startswith("multipage: 3 pages")
    assert kept(tmp_path, "a.tiff", first_frame=True).first_frame


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(64), "pip install pillow-heif"),
        ("a.avif", b"\0\0\0\x18ftypavif" + bytes(64), "a Pillow built with AVIF"),
        ("a.jxl", b"\xff\x0a" + bytes(64), "pip install pillow-jxl-plugin"),
    ],
)
def test_16_a_missing_decoder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, words: str
) -> None:
    monkeypatch.setattr(opening, "formats", lambda: ("PNG", "JPEG"))
    reason = set_aside(tmp_path, name, data)
    assert reason.startswith("no_decoder:")
    assert words in reason


def test_17_a_bomb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    bomb = hostile.png(30_000, 30_000, 1, 0, bytes(1 + 30_000 // 8), 30_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert set_aside(tmp_path, "a.png", bomb).startswith("too_many_pixels:")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_17_a_limit_can_be_raised(tmp_path: Path) -> None:
    big = hostile.png(1000, 1000, 1, 0, bytes(1 + 125), 1000)
    assert "--max-pixels" in set_aside(tmp_path, "a.png", big, max_pixels=999_999)
    assert kept(tmp_path, "a.png", max_pixels=1_000_000).size == (1000, 1000)


def test_18_a_huge_text_chunk(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a" * (70 << 20), zip=True)
    assert set_aside(tmp_path, "a.png", encoded(photo(1), "PNG", pnginfo=info)).startswith("corrupt:")


@pytest.mark.parametrize(("size", "code"), [((1, 1), "too_small"), ((20, 4000), "too_narrow")])
def test_19_a_dot_and_a_line(tmp_path: Path, size: tuple[int, int], code: str) -> None:
    assert set_aside(tmp_path, "a.png", encoded(Image.new("RGB", size), "PNG")).startswith(f"{code}:")


def test_20_duplicates_and_leaks_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a.png": "x", "train/c.png": "y"})
    shutil.copy(tmp_path / "train/a.png", tmp_path / "train/again.png")
    (tmp_path / "val").mkdir()
    photo(1).resize((300, 225)).save(tmp_path / "val/small.jpg", quality=70)
    result = run(tmp_path)
    found = {finding.code: finding for finding in result.findings}
    assert len(result.kept) == 5  # nothing is thrown away
    assert found["duplicate"].files == ("train/a.png", "train/again.png")
    assert found["near_duplicate"].files == ("train/c.png", "val/small.jpg")
    assert found["leak"].files == ("train/c.png", "val/small.jpg")
    assert "train and validation" in found["leak"].message


def test_20_held_out_images_that_are_here_too_are_named(tmp_path: Path) -> None:
    fill(tmp_path / "here", {"a.png": "x", "b.png": "y"})
    fill(tmp_path / "held", {"z.png": None, "y.png": None, "x.png": None})
    shutil.copy(tmp_path / "here/b.png", tmp_path / "held/copy.png")
    os.remove(tmp_path / "held/y.png")
    result = check_only(tmp_path / "here", PrepareOptions(quiet=True), against=tmp_path / "held")
    leaks = {frozenset(finding.files) for finding in result.findings if finding.code == "leak"}
    held = str(tmp_path / "held")
    assert leaks == {frozenset({"a.png", f"{held}/z.png"}), frozenset({"b.png", f"{held}/copy.png"})}
    assert not (tmp_path / "held" / manifest.MANIFEST).exists()


def test_21_a_drawing_is_never_rendered(tmp_path: Path) -> None:
    svg = b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    assert set_aside(tmp_path, "a.svg", svg).startswith("svg:")
    assert set_aside(tmp_path / "png", "a.png", svg).startswith("svg:")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    place = os.getcwd()
    os.chdir(path.parent)  # socket paths are limited to about 100 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(place)


@pytest.mark.parametrize("make", [_pipe, _socket])
def test_22_pipes_and_sockets_do_not_block(tmp_path: Path, make: object) -> None:
    make(tmp_path / "x.png")  # type: ignore[operator]
    began = time.monotonic()
    assert set_aside(tmp_path, "x.png").split(":")[0] in ("not_a_file", "unreadable")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("target", ["nothing.png", "x.png"], ids=["dangling", "itself"])
def test_23_a_link_to_nowhere(tmp_path: Path, target: str) -> None:
    (tmp_path / "x.png").symlink_to(target)
    assert set_aside(tmp_path, "x.png").startswith("dangling_symlink:")


def test_24_a_link_out_of_the_folder(tmp_path: Path) -> None:
    photo(3).save(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.png").symlink_to(tmp_path / "secret.png")
    assert set_aside(tmp_path / "data", "x.png").startswith("symlink_outside:")
    (tmp_path / "data/x.png").unlink()
    photo(4).save(tmp_path / "data/real.png")
    (tmp_path / "data/inside.png").symlink_to("real.png")
    assert kept(tmp_path / "data", "inside.png").pixels  # within the folder, a link is as good as a file


def test_25_a_folder_that_links_to_itself(tmp_path: Path) -> None:
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/sub/loop").symlink_to(tmp_path / "data")
    result = run(tmp_path / "data")
    assert [record.file for record in result.records] == [GOOD]
    assert [f.files for f in result.findings if f.code == "linked_folder"] == [("sub/loop",)]


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder and a user who may not read everything, also when the tests run as root."""
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


def test_26_a_file_that_may_not_be_read(nobody: Path) -> None:
    photo(1).save(nobody / "x.png")
    (nobody / "x.png").chmod(0)
    photo(99).save(nobody / GOOD)
    result = prepare(nobody, PrepareOptions(resolution=64, class_noun="dog", report=False, quiet=True))
    assert {r.file: scan.code_of(r.reason) for r in result.records} == {"x.png": "unreadable", GOOD: ""}


def test_26_a_folder_that_may_not_be_read(nobody: Path) -> None:
    (nobody / "closed").mkdir(0)
    photo(99).save(nobody / GOOD)
    result = prepare(nobody, PrepareOptions(resolution=64, class_noun="dog", report=False, quiet=True))
    (nobody / "closed").chmod(0o700)
    assert [f.files for f in result.findings if f.code == "unreadable_folder"] == [("closed/",)]
    assert "closed/" in result.summary()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_27_a_file_that_changed_since_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    photo(1).save(tmp_path / f"a.{suffix}")
    record = kept(tmp_path, f"a.{suffix}")
    photo(2).save(tmp_path / f"a.{suffix}")
    with pytest.raises(ImageError, match="changed since it was prepared") as caught:
        images.read(tmp_path, record)
    assert (caught.value.code, caught.value.exit_code) == ("changed", 3)
    assert f"a.{suffix}" in str(caught.value)


def test_27_another_comment_is_no_change(tmp_path: Path) -> None:
    photo(1).save(tmp_path / "a.jpg")
    record = kept(tmp_path, "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xfe\0\x08edited"[:10] + data[2:])
    assert images.pixel_hash(images.read(tmp_path, record)) == images.pixel_hash(
        images.decode(tmp_path / "a.jpg")
    )


def test_28_a_file_that_went_away_is_an_error_with_its_name(tmp_path: Path) -> None:
    record = kept(tmp_path, "a.png", encoded(photo(1), "PNG"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError) as caught:
        images.read(tmp_path, record)
    assert (caught.value.code, caught.value.exit_code) == ("missing", 3)
    assert run(tmp_path).gone == ("a.png",)


def test_29_names_that_share_a_caption_file(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "a.jpg": None, "A.JPG": None})
    (tmp_path / "a.txt").write_text("whose?")
    result = run(tmp_path)
    refused = {record.file: scan.code_of(record.reason) for record in result.records if not record.keep}
    assert refused == {"a.png": "name_collision", "a.jpg": "name_collision"}
    assert [f.files for f in result.findings if f.code == "name_clash"] == [("A.JPG", "a.jpg")]


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
def test_30_odd_names(tmp_path: Path, stem: str) -> None:
    name = f"{stem}.png"
    photo(1).save(tmp_path / name)
    result = run(tmp_path)
    assert name in [record.file for record in result.kept]
    assert [record.file for record in manifest.load(tmp_path)] == sorted((name, GOOD))
    (tmp_path / name).write_bytes(b"")
    shown = run(tmp_path).summary()
    assert "empty" in shown
    assert all(letter.isprintable() for letter in shown.replace("\n", ""))
    assert len(shown.splitlines()) == len([line for line in shown.splitlines() if line.strip()])


def test_31_memory_does_not_grow_with_tiny_files(tmp_path: Path) -> None:
    data = encoded(Image.effect_noise((16, 16), 90), "PNG")
    program = (
        "import re, sys; from data_tools import listing, scan;"
        "records = scan.scan(listing.find(sys.argv[1]), scan.ScanOptions(workers=1));"
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

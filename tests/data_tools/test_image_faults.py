"""Faults of image files (1 to 21 of fault_catalogue.md), each through `prepare`.

What the decoder makes of the pixels themselves is in tests/imaging/test_decode.py under the same numbers.
"""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

from data_tools.prepare import PrepareOptions, check_dataset_folder, prepare_dataset
from lorakit import manifest
from lorakit.imaging import decode, open_image
from tests.data_tools import hostile
from tests.data_tools.folders import fill, photo
from tests.data_tools.one_bad_file import codes, encoded, exclusion_reason, kept, run


def test_an_empty_file_is_excluded(tmp_path: Path) -> None:
    assert exclusion_reason(tmp_path, "a.jpg", b"").startswith("empty:")


@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"], ids=["cut", "cut and closed"])
def test_a_truncated_jpeg_is_excluded(tmp_path: Path, ending: bytes) -> None:
    data = encoded(photo(1), "JPEG")
    data = data[: len(data) * 8 // 10] + ending
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # Pillow's own check passes
    assert exclusion_reason(tmp_path, "a.jpg", data).startswith("truncated:")


def test_a_truncated_png_is_excluded(tmp_path: Path) -> None:
    data = encoded(photo(1), "PNG")
    assert exclusion_reason(tmp_path, "a.png", data[: len(data) * 8 // 10]).startswith("truncated:")


def test_a_png_named_jpg_is_used_and_noted(tmp_path: Path) -> None:
    assert "wrong_extension" in codes(kept(tmp_path, "a.jpg", encoded(photo(1), "PNG")))


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"<html><head></head>Not Found</html>", "html_or_xml"), (b'{"message": "Forbidden"}', "json_file")],
)
def test_html_and_json_saved_as_jpg_are_excluded(tmp_path: Path, data: bytes, code: str) -> None:
    assert exclusion_reason(tmp_path, "a.jpg", data).startswith(f"{code}:")


def test_a_git_lfs_pointer_is_excluded_with_the_command_to_fetch_it(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    assert "git-lfs" in exclusion_reason(tmp_path, "a.jpg", pointer)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photo_is_measured_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    record = kept(tmp_path, "a.jpg", encoded(photo(1, (96, 64)), "JPEG", exif=exif))
    assert record.size == ((96, 64) if orientation < 5 else (64, 96))
    assert ("exif_rotated" in codes(record)) is (orientation > 1)


def test_a_broken_exif_block_is_ignored(tmp_path: Path) -> None:
    data = encoded(photo(1), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 400)
    assert "broken_exif" in codes(kept(tmp_path, "a.jpg", data))


def test_hidden_colors_of_transparent_pixels_are_not_read(tmp_path: Path) -> None:
    hidden = photo(1).convert("RGBA")
    hidden.putalpha(0)
    record = kept(tmp_path, "a.png", encoded(hidden, "PNG"), background=(1, 2, 3))
    assert decode.read_record_image(tmp_path, record).getextrema() == ((1, 1), (2, 2), (3, 3))
    assert record.phash is None  # nor in what finds duplicates


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_transparent_gray_and_palette_images_are_composited(tmp_path: Path, mode: str) -> None:
    image = photo(1).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 160, 240))
    record = kept(tmp_path, "a.png", encoded(image.quantize() if mode == "P" else image.convert(mode), "PNG"))
    assert decode.read_record_image(tmp_path, record).crop((4, 4, 150, 230)).getextrema() == ((255, 255),) * 3
    assert "transparency" in codes(record)


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    row = b"".join(value.to_bytes(2, "big") for value in (65535, 256, 0, 32768) * 16)
    record = kept(tmp_path, "a.png", hostile.png(64, 64, 16, 0, b"\0" + row, 64))
    assert [decode.read_record_image(tmp_path, record).getpixel((x, 0))[0] for x in range(4)] == [
        255,
        1,
        0,
        128,
    ]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    record = kept(tmp_path, "a.jpg", encoded(ink, "JPEG", quality=95))
    red = decode.read_record_image(tmp_path, record).getpixel((9, 9))
    assert max(abs(a - b) for a, b in zip(red, (255, 0, 0), strict=True)) <= 3
    assert "cmyk" in codes(record)


def test_a_color_profile_is_converted_and_noted(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    broken = encoded(photo(1), "JPEG", icc_profile=b"nonsense" * 20)
    assert "broken_icc" in codes(kept(tmp_path / "x", "a.jpg", broken))
    assert "broken_icc" in codes(kept(tmp_path / "y", "a.png", encoded(photo(1), "PNG", icc_profile=profile)))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_are_excluded_unless_the_first_frame_is_requested(tmp_path: Path, form: str) -> None:
    frames = [photo(seed, (64, 48)) for seed in range(3)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert "3 frames" in exclusion_reason(tmp_path, f"a.{form.lower()}", data)
    assert kept(tmp_path, f"a.{form.lower()}", first_frame=True).first_frame


def test_multipage_tiffs_are_excluded_unless_the_first_frame_is_requested(tmp_path: Path) -> None:
    pages = [photo(seed, (64, 48)) for seed in range(3)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert exclusion_reason(tmp_path, "a.tiff", data).startswith("multipage: 3 pages")
    assert kept(tmp_path, "a.tiff", first_frame=True).first_frame


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(64), "pip install pillow-heif"),
        ("a.avif", b"\0\0\0\x18ftypavif" + bytes(64), "a Pillow built with AVIF"),
        ("a.jxl", b"\xff\x0a" + bytes(64), "pip install pillow-jxl-plugin"),
    ],
)
def test_a_missing_decoder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, words: str
) -> None:
    monkeypatch.setattr(open_image, "decodable_formats", lambda: ("PNG", "JPEG"))
    reason = exclusion_reason(tmp_path, name, data)
    assert reason.startswith("no_decoder:")
    assert words in reason


def test_a_pixel_bomb_is_excluded_before_memory_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = hostile.png(30_000, 30_000, 1, 0, bytes(1 + 30_000 // 8), 30_000)
    largest = [0]
    real = ImageFile.ImageFile.load_prepare

    def prepare(image: ImageFile.ImageFile) -> None:  # where Pillow takes the memory for the pixels
        largest[0] = max(largest[0], image.width * image.height)
        real(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", prepare)
    assert exclusion_reason(tmp_path, "a.png", bomb).startswith("too_many_pixels:")
    assert 0 < largest[0] < 1_000_000  # the good image was loaded, the bomb was not


def test_the_pixel_limit_can_be_raised(tmp_path: Path) -> None:
    big = hostile.png(1000, 1000, 1, 0, bytes(1 + 125), 1000)
    assert "--max-pixels" in exclusion_reason(tmp_path, "a.png", big, max_pixels=999_999)
    assert kept(tmp_path, "a.png", max_pixels=1_000_000).size == (1000, 1000)


def test_a_huge_text_chunk_is_excluded(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a" * (70 << 20), zip=True)
    assert exclusion_reason(tmp_path, "a.png", encoded(photo(1), "PNG", pnginfo=info)).startswith(
        "unsupported_format:"
    )


@pytest.mark.parametrize(("size", "code"), [((1, 1), "too_small"), ((20, 4000), "extreme_aspect_ratio")])
def test_tiny_and_extremely_narrow_images_are_excluded(
    tmp_path: Path, size: tuple[int, int], code: str
) -> None:
    assert exclusion_reason(tmp_path, "a.png", encoded(Image.new("RGB", size), "PNG")).startswith(f"{code}:")


def test_duplicates_and_split_leaks_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a.png": "x", "train/c.png": "y"})
    shutil.copy(tmp_path / "train/a.png", tmp_path / "train/again.png")
    (tmp_path / "val").mkdir()
    photo(1).resize((300, 225)).save(tmp_path / "val/small.jpg", quality=70)
    result = run(tmp_path)
    found = {finding.code: finding for finding in result.findings}
    assert len(result.kept) == 5  # nothing is thrown away
    assert found["duplicate"].files == ("train/a.png", "train/again.png")
    assert found["near_duplicate"].files == ("train/c.png", "val/small.jpg")
    assert found["split_leak"].files == ("train/c.png", "val/small.jpg")
    assert "train and validation" in found["split_leak"].message


def test_images_that_are_also_held_out_are_reported(tmp_path: Path) -> None:
    fill(tmp_path / "here", {"a.png": "x", "b.png": "y"})
    fill(tmp_path / "held", {"z.png": None, "y.png": None, "x.png": None})
    shutil.copy(tmp_path / "here/b.png", tmp_path / "held/copy.png")
    os.remove(tmp_path / "held/y.png")
    result = check_dataset_folder(tmp_path / "here", PrepareOptions(quiet=True), held_out=tmp_path / "held")
    leaks = {frozenset(finding.files) for finding in result.findings if finding.code == "split_leak"}
    held = str(tmp_path / "held")
    assert leaks == {frozenset({"a.png", f"{held}/z.png"}), frozenset({"b.png", f"{held}/copy.png"})}
    assert not (tmp_path / "held" / manifest.MANIFEST_FILE).exists()


def test_an_svg_is_never_rendered(tmp_path: Path) -> None:
    svg = b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    assert exclusion_reason(tmp_path, "a.svg", svg).startswith("svg:")
    assert exclusion_reason(tmp_path / "png", "a.png", svg).startswith("svg:")


@pytest.mark.parametrize(
    "error", [RuntimeError("a plane is missing"), AttributeError("x"), ZeroDivisionError(), Exception("odd")]
)
def test_whatever_a_decoder_raises_excludes_only_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Decoders of many formats raise errors of any type; each is a finding of the one file."""
    for name in ("good.png", "odd.webp"):
        photo(1).save(tmp_path / name)
        (tmp_path / f"{Path(name).stem}.txt").write_text("a dog")
    plain = decode.inspect_image

    def inspect(source: Any) -> Any:
        if source.where == "odd.webp":
            raise error
        return plain(source)

    monkeypatch.setattr(decode, "inspect_image", inspect)
    result = prepare_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True))
    assert [record.file for record in result.records if record.keep] == ["good.png"]
    (finding,) = [finding for finding in result.findings if finding.code == "decoder_failed"]
    assert type(error).__name__ in finding.message
    assert finding.files == ("odd.webp",)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_heic_photos_are_read_without_exif(tmp_path: Path, mode: str) -> None:
    pillow_heif.register_heif_opener()
    photo(1).convert(mode).save(tmp_path / "a.heic")
    (tmp_path / "a.txt").write_text("a dog")
    (record,) = prepare_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True)).records
    assert record.keep, record.reason

"""Files that cannot be used are called what they are: of an unsupported kind, damaged, or not an image."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, PngImagePlugin

from data_tools import scan
from data_tools.listing import list_dataset
from lorakit.imaging import decode
from lorakit.imaging.open_image import decodable_formats
from lorakit.manifest import Record
from tests.data_tools import hostile
from tests.data_tools.folders import photo
from tests.data_tools.one_bad_file import encoded
from tests.imaging import videos

DAMAGED = {"corrupt", "truncated", "decoder_failed", "unknown_format"}


def measured(folder: Path, data: bytes, name: str = "a.jpg") -> Record:
    (folder / name).write_bytes(data)
    return scan.scan_file(str(folder), scan.ScanOptions(), scan.ScanJob(name, None))


def code_of(folder: Path, data: bytes, name: str = "a.jpg") -> str:
    return scan.note_code(measured(folder, data, name).reason)


def zipped(names: dict[str, bytes], *, is_encrypted: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    data = bytearray(buffer.getvalue())
    data[6] |= is_encrypted
    return bytes(data)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    return buffer.getvalue()


def tiff(tags: dict[int, int], pixels: bytes = bytes(64 * 64 * 8)) -> bytes:
    """Return a TIFF of 64x64 pixels with short tags; those of the strip are added."""
    entries = {256: 64, 257: 64, 258: 8, 259: 1, 277: 1, 278: 64, **tags}
    count = len(entries) + 2
    place = 8 + 2 + 12 * count + 4
    packed = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries.items()]
    packed += [struct.pack("<HHII", 273, 4, 1, place), struct.pack("<HHII", 279, 4, 1, len(pixels))]
    packed.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    return b"II*\0" + struct.pack("<IH", 8, count) + b"".join(packed) + bytes(4) + pixels


def bmp(depth: int, compression: int, *, masks: tuple[int, ...] = ()) -> bytes:
    pixels = bytes((64 * depth + 31) // 32 * 4 * 64)
    header = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, depth, compression, len(pixels), 0, 0, 0, 0)
    body = header + struct.pack(f"<{len(masks)}I", *masks)
    return b"BM" + struct.pack("<IHHI", 14 + len(body) + len(pixels), 0, 0, 14 + len(body)) + body + pixels


def jpeg_frame(code: int, precision: int) -> bytes:
    """Return a JPEG with another frame: its header is whole, and decoders refuse it."""
    data = encoded(photo(1, (64, 48)), "JPEG")
    place = data.index(b"\xff\xc0")
    return (
        data[: place + 1]
        + bytes([code])
        + data[place + 2 : place + 4]
        + bytes([precision])
        + data[place + 5 :]
    )


UNSUPPORTED = {
    "PSD": (b"8BPS\0\1" + bytes(90), "Photoshop"),
    "XCF": (b"gimp xcf v011" + bytes(90), "GIMP"),
    "CSP": (b"CSFCHUNK" + bytes(90), "Clip Studio"),
    "Krita": (zipped({"mimetype": b"application/x-krita"}), "Krita"),
    "EXR": (b"v/1\x01" + bytes(90), "OpenEXR"),
    "HDR": (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "Radiance"),
    "JPEG XR": (b"II\xbc\x01" + bytes(90), "JPEG XR"),
    "cursor": (b"\0\0\2\0\1\0 " + bytes(90), "cursor"),
    "TGA without a signature": (
        struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 8, 8, 24, 0) + bytes(192),
        "TGA",
    ),
    "16-bit Lab TIFF": (tiff({258: 16, 262: 8, 277: 3}), "CIE Lab"),
    "64-bit float TIFF": (tiff({258: 64, 262: 1, 339: 3}), "64 floating-point bits"),
    "TIFF with LERC": (tiff({262: 1, 259: 34887}), "LERC"),
    "BMP of 2 bits": (bmp(2, 0), "BMP"),
    "BMP with odd masks": (bmp(16, 3, masks=(0xF000, 0x0F00, 0x000F)), "BMP"),
    "12-bit JPEG": (jpeg_frame(0xC1, 12), "12 bits"),
    "lossless JPEG": (jpeg_frame(0xC3, 8), "lossless"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_whole_file_of_an_unsupported_kind_is_named_as_such(tmp_path: Path, kind: str) -> None:
    data, words = UNSUPPORTED[kind]
    reason = measured(tmp_path, data).reason or ""
    assert reason.startswith("unsupported_format: ")
    assert words in reason
    assert "PNG" in reason  # what to do
    assert "again" not in reason  # fetching it again would not help


@pytest.mark.parametrize(
    "data",
    [
        tiff({258: 16, 262: 8, 277: 3})[:900],
        bmp(2, 0)[:300],
        jpeg_frame(0xC0, 99),
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        encoded(photo(1, (64, 48)), "AVIF")[:300],
        encoded(photo(1, (64, 48)), "JPEG2000")[:60],
        bytes(5000),
    ],
    ids=["tiff", "bmp", "jpeg", "png", "avif", "jpeg2000", "zeros"],
)
def test_a_damaged_file_is_still_called_damaged(tmp_path: Path, data: bytes) -> None:
    reason = measured(tmp_path, data).reason or ""
    assert scan.note_code(reason) in ("corrupt", "truncated")
    assert "again" in reason


OTHER_FILES = {
    "zip": (zipped({"a.png": b"x"}), "not_an_image", "a zip archive, not an image (unpack"),
    "zip with a password": (zipped({"a": b"x"}, is_encrypted=True), "not_an_image", "with a password"),
    "office document": (zipped({"[Content_Types].xml": b"x"}), "not_an_image", "office"),
    "gzip": (gzip.compress(b"x" * 99), "not_an_image", "gzip"),
    "tar": (tar(), "not_an_image", "tar archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(90), "not_an_image", "7z"),
    "rar": (b"Rar!\x1a\x07\x01\0" + bytes(90), "not_an_image", "RAR"),
    "PDF": (b"%PDF-1.7\n%%EOF", "not_an_image", "export its pages"),
    "text": (b"The image could not be found.", "not_an_image", "The image could not be found."),
    "UTF-16 text": ("not here".encode("utf-16"), "not_an_image", "not here"),
    "sound": (b"ID3\x04" + bytes(90), "not_an_image", "sound"),
    "program": (b"\x7fELF" + bytes(90), "not_an_image", "program"),
    "html": (b"\n<!DOCTYPE html><title>404</title>", "html_or_xml", "HTML"),
    "MP4": (videos.encode(2), "video_file", "train a video model"),
    "WebM": (videos.encode(2, name="a.webm", codec="libvpx-vp9"), "video_file", "MKV or WebM"),
    "AVI": (videos.encode(2, name="a.avi", codec="mpeg4"), "video_file", "AVI"),
    "CR2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(90), "camera_raw", "Canon"),
    "CR3": (b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(90), "camera_raw", "Canon"),
    "RAF": (b"FUJIFILMCCD-RAW 0201" + bytes(90), "camera_raw", "Fujifilm"),
    "RW2": (b"IIU\0\x18\0\0\0" + bytes(90), "camera_raw", "Panasonic"),
    "ORF": (b"IIRO\x08\0\0\0" + bytes(90), "camera_raw", "Olympus"),
    "raw sensor data": (tiff({262: 32803, 258: 14}), "camera_raw", "raw file"),
    "NEF": (tiff({254: 1, 262: 2, 277: 3}), "camera_raw", "preview"),
    "noise": (np.random.default_rng(0).bytes(500), "unknown_format", "starts with the bytes"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_a_file_that_is_not_an_image_is_called_what_it_is(tmp_path: Path, kind: str) -> None:
    data, code, words = OTHER_FILES[kind]
    reason = measured(tmp_path, data).reason or ""
    assert reason.startswith(f"{code}: ")
    assert words in reason
    assert reason.endswith(")")  # what to do


def test_no_file_of_any_encoder_is_called_damaged(tmp_path: Path) -> None:
    """Every pair of format and mode that Pillow and pillow-heif write: kept, or named as unsupported."""
    decodable_formats()  # registers the encoder of HEIC
    kept = set()
    for (form, mode), data in hostile._formats().items():
        record = measured(tmp_path, data, f"{form}-{mode.replace(';', '_')}")
        assert record.keep or form in ("SPIDER", "PALM") or scan.note_code(record.reason) not in DAMAGED, form
        assert not record.keep or record.size == (64, 48)
        kept |= {form} if record.keep else set()
    assert {"JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000", "QOI", "HEIF"} <= kept


def test_bytes_after_the_end_of_a_png_do_not_matter(tmp_path: Path) -> None:
    data = encoded(photo(1, (64, 48)), "PNG")
    assert measured(tmp_path, data + data + b"\xff" * 99).keep


def test_the_pixels_of_a_refused_bomb_are_stated(tmp_path: Path) -> None:
    bomb = hostile.png(30_000, 30_000, 1, 0, bytes(1 + 30_000 // 8), 2)
    assert "900000000 pixels" in (measured(tmp_path, bomb).reason or "")


def test_a_raw_file_takes_no_caption_from_the_image_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.cr2").write_bytes(OTHER_FILES["CR2"][0])
    (tmp_path / "a.txt").write_text("a dog")
    photo(1).save(tmp_path / "a.jpg")
    records = {record.file: record for record in scan.scan_images(list_dataset(tmp_path), scan.ScanOptions())}
    assert records["a.jpg"].keep
    assert scan.note_code(records["a.cr2"].reason) == "camera_raw"


# ---- files with several images, and orientations --------------------------------------------------------


def heif_of(shades: list[int], primary: int) -> bytes:
    pillow_heif.register_heif_opener()
    images = [Image.new("RGB", (64, 48), (shade, shade, shade)) for shade in shades]
    return encoded(
        images[0], "HEIF", save_all=True, append_images=images[1:], primary_index=primary, quality=95
    )


@pytest.mark.parametrize("primary", [0, 2])
def test_of_several_images_in_a_heic_the_primary_one_is_used(tmp_path: Path, primary: int) -> None:
    data = heif_of([40, 120, 220], primary)
    record = measured(tmp_path, data, "a.heic")
    assert f"primary_image: image {primary + 1} of 3 in the file" in record.notes
    assert record.keep
    assert not record.first_frame
    shade = np.asarray(decode.decode_bytes(data, where="a.heic").image).mean()
    assert abs(shade - (40, 120, 220)[primary]) < 4


def apng(count: int) -> bytes:
    """Return a PNG with a red default image before `count` green frames."""
    frames = [Image.new("RGB", (32, 32), (255, 0, 0))]
    frames += [Image.new("RGB", (32, 32), (0, 255 - number, 0)) for number in range(count)]
    return encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)


def test_the_default_image_of_a_png_is_not_one_of_its_frames(tmp_path: Path) -> None:
    assert measured(tmp_path, apng(1), "a.png").keep  # one frame is not an animation
    assert decode.decode_bytes(apng(1), where="a.png").image.getpixel((5, 5)) == (0, 255, 0)
    assert "animated: 3 frames" in (measured(tmp_path, apng(3), "a.png").reason or "")
    first = decode.decode_bytes(apng(3), where="a.png", first_frame=True)
    assert first.image.getpixel((5, 5)) == (0, 255, 0)
    assert first.is_multi_frame


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_in_xmp_alone_is_noted_and_not_applied(tmp_path: Path, form: str) -> None:
    """Browsers do not apply it either: many programs rotate the pixels and leave XMP as it was."""
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    options: dict[str, object] = {"xmp": xmp.encode()}
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        options = {"pnginfo": info}
    record = measured(tmp_path, encoded(photo(1, (64, 48)), form, **options), f"a.{form.lower()}")
    assert record.size == (64, 48)
    assert "xmp_orientation" in {scan.note_code(note) for note in record.notes}


def test_a_png_whose_chunks_are_whole_is_not_called_damaged(tmp_path: Path) -> None:
    """A color profile packed in a way that does not exist: programs that ignore it show the image."""
    data = encoded(photo(1, (64, 48)), "PNG")
    body = b"iCCPname\0\x07" + zlib.compress(b"x")
    profile = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    assert code_of(tmp_path, data[:33] + profile + data[33:], "a.png") == "unsupported_format"


def test_an_empty_exif_block_is_not_called_damaged(tmp_path: Path) -> None:
    empty = encoded(photo(1, (64, 48)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    assert "broken_exif" not in {scan.note_code(note) for note in measured(tmp_path, empty).notes}

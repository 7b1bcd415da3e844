"""Tests of colors that are described without an ICC profile: CICP codes, and PNG's gAMA and cHRM.

The expected values are those of Chromium 156 with `--force-color-profile=srgb` for the same bytes.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import scan
from data_tools.listing import list_dataset
from lorakit.imaging import decode, iso_boxes
from lorakit.imaging.color_encoding import read_color_encoding

COLORS = [(200, 60, 40), (40, 180, 90), (60, 80, 200), (128, 128, 128), (20, 40, 30)]
P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
BT2020 = ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def cicp(primaries: int, transfer: int) -> bytes:
    return chunk(b"cICP", bytes([primaries, transfer, 0, 1]))


def gama(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def chrm(primaries: tuple[tuple[float, float], ...]) -> bytes:
    values = [number for point in ((0.3127, 0.3290), *primaries) for number in point]
    return chunk(b"cHRM", struct.pack(">8I", *(round(number * 100_000) for number in values)))


def png(chunks: bytes, colors: list[tuple[int, int, int]] = COLORS) -> bytes:
    """Return a PNG with squares of 8 pixels of the colors."""
    pixels = np.repeat(np.repeat(np.array([colors], np.uint8), 8, 0), 8, 1)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8 * len(colors), 8, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def decoded(path: Path, data: bytes) -> np.ndarray:
    path.write_bytes(data)
    return np.asarray(decode.decode_image(path))[4, 4::8].astype(int)


SRGB = chunk(b"sRGB", b"\0")
CASES = {
    "BT.470 M": (cicp(4, 13), [(236, 49, 16), (0, 177, 84), (0, 96, 206), (128, 128, 128), (2, 40, 30)]),
    "BT.470 BG": (cicp(5, 13), [(204, 60, 40), (6, 180, 92), (59, 80, 199), (128, 128, 128), (19, 40, 30)]),
    "BT.601": (cicp(6, 13), [(195, 66, 39), (59, 178, 89), (65, 84, 200), (128, 128, 128), (22, 40, 30)]),
    "film": (cicp(8, 13), [(226, 39, 21), (0, 185, 81), (48, 76, 206), (128, 128, 128), (7, 41, 29)]),
    "BT.2020": (cicp(9, 13), [(247, 0, 23), (0, 190, 74), (0, 80, 209), (128, 128, 128), (0, 42, 29)]),
    "XYZ": (cicp(10, 13), [(255, 0, 64), (0, 241, 40), (0, 103, 211), (128, 128, 128), (0, 53, 27)]),
    "DCI P3": (cicp(11, 13), [(212, 42, 24), (0, 183, 78), (55, 80, 207), (128, 128, 128), (15, 41, 29)]),
    "Display P3": (cicp(12, 13), [(217, 42, 23), (0, 183, 78), (54, 81, 207), (128, 128, 128), (12, 41, 29)]),
    "EBU 3213": (cicp(22, 13), [(202, 66, 39), (25, 176, 90), (60, 87, 200), (128, 128, 128), (19, 39, 30)]),
    "curve of BT.709": (
        cicp(1, 1),
        [(197, 49, 28), (28, 176, 81), (49, 70, 197), (121, 121, 121), (7, 28, 18)],
    ),
    "unspecified": (cicp(1, 2), COLORS),
    "gamma 2.2": (cicp(1, 4), [(201, 57, 35), (35, 181, 90), (57, 79, 201), (129, 129, 129), (12, 35, 24)]),
    "gamma 2.8": (cicp(1, 5), [(189, 36, 17), (17, 165, 66), (36, 56, 189), (106, 106, 106), (3, 17, 8)]),
    "SMPTE 240M": (cicp(1, 7), [(206, 77, 58), (58, 188, 106), (77, 97, 206), (141, 141, 141), (38, 58, 48)]),
    "linear": (
        cicp(1, 8),
        [(229, 133, 110), (110, 219, 160), (133, 152, 229), (188, 188, 188), (79, 110, 96)],
    ),
    "SMPTE 428": (cicp(1, 17), [(200, 44, 23), (23, 177, 76), (44, 65, 200), (118, 118, 118), (5, 23, 13)]),
    "BT.2020 with its curve": (
        cicp(9, 1),
        [(244, 0, 0), (0, 186, 62), (0, 70, 206), (121, 121, 121), (0, 30, 16)],
    ),
    "gAMA of sRGB": (gama(0.45455), COLORS),
    "gAMA 0.4": (gama(0.4), [(195, 46, 25), (25, 173, 77), (46, 66, 195), (117, 117, 117), (6, 25, 15)]),
    "gAMA 1": (
        gama(1.0),
        [(229, 133, 110), (110, 219, 160), (133, 152, 229), (188, 188, 188), (79, 110, 96)],
    ),
    "gAMA and cHRM of P3": (
        gama(0.45455) + chrm(P3),
        [(219, 37, 13), (0, 185, 77), (51, 80, 209), (129, 129, 129), (2, 36, 23)],
    ),
    "gAMA and cHRM of BT.2020": (
        gama(0.45455) + chrm(BT2020),
        [(249, 0, 14), (0, 191, 73), (0, 79, 210), (129, 129, 129), (0, 37, 23)],
    ),
    "cHRM alone": (chrm(P3), COLORS),
    "sRGB goes before gAMA": (SRGB + gama(1.0) + chrm(P3), COLORS),
    "cICP goes before sRGB": (
        SRGB + cicp(9, 13),
        [(247, 0, 23), (0, 190, 74), (0, 80, 209), (128, 128, 128), (0, 42, 29)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_colors_of_a_png_are_those_of_a_browser(tmp_path: Path, name: str) -> None:
    chunks, expected = CASES[name]
    assert np.abs(decoded(tmp_path / "a.png", png(chunks)) - np.array(expected)).max() <= 2


@pytest.mark.parametrize("size", [(8, 8), (16, 700)], ids=["one strip", "several strips"])
def test_a_conversion_is_noted_and_the_same_in_strips(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (200, 60, 40)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:33] + cicp(12, 13) + data[33:])
    pixels = np.asarray(decode.decode_image(tmp_path / "a.png"))
    assert np.abs(pixels.astype(int) - (217, 42, 23)).max() <= 1
    (record,) = scan.scan_images(list_dataset(tmp_path), scan.ScanOptions(min_side=1, max_aspect_ratio=100))
    assert "color_encoding_converted: Display P3, sRGB curve converted to sRGB" in record.notes


AVIF = {
    (1, 13): COLORS,
    (1, 1): COLORS,
    (2, 2): COLORS,
    (1, 4): [(201, 58, 35), (34, 182, 88), (57, 80, 200), (129, 129, 129), (11, 36, 23)],
    (9, 1): [(247, 0, 23), (0, 191, 72), (0, 81, 208), (128, 128, 128), (0, 43, 28)],
    (12, 13): [(217, 43, 23), (0, 184, 76), (54, 82, 206), (128, 128, 128), (10, 42, 28)],
    (6, 6): [(195, 67, 39), (59, 179, 88), (65, 84, 199), (128, 128, 128), (21, 41, 29)],
}


def avif(primaries: int, transfer: int) -> bytes:
    """Return an AVIF whose nclx box states the codes; Pillow always writes those of sRGB."""
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(np.array([COLORS], np.uint8), 16, 0), 16, 1)).save(
        buffer, "AVIF", quality=100, subsampling="4:4:4"
    )
    data = buffer.getvalue()
    place = data.index(b"colrnclx") + 8
    return data[:place] + struct.pack(">HH", primaries, transfer) + data[place + 4 :]


@pytest.mark.parametrize("codes", AVIF)
def test_colors_of_an_avif_are_those_of_a_browser(tmp_path: Path, codes: tuple[int, int]) -> None:
    (tmp_path / "a.avif").write_bytes(avif(*codes))
    pixels = np.asarray(decode.decode_image(tmp_path / "a.avif"))[8, 8::16].astype(int)
    assert np.abs(pixels - np.array(AVIF[codes])).max() <= 4


PEAK_600 = chunk(b"cLLI", struct.pack(">II", 600 * 10_000, 0))
MASTERED_AT_600 = chunk(b"mDCV", bytes(16) + struct.pack(">II", 600 * 10_000, 1))
HDR_COLORS = [(150, 60, 40), (40, 140, 90), (60, 80, 160), (128, 128, 128), (20, 40, 30)]
HDR = {
    "PQ": (cicp(9, 16), [(241, 0, 0), (0, 173, 33), (0, 41, 224), (132, 132, 132), (0, 10, 4)]),
    "HLG": (cicp(9, 18), [(137, 21, 20), (0, 114, 65), (3, 58, 124), (99, 99, 99), (0, 22, 13)]),
    "PQ of P3": (cicp(12, 16), [(212, 0, 0), (0, 166, 41), (16, 45, 223), (132, 132, 132), (0, 10, 4)]),
    "PQ with a peak": (
        PEAK_600 + cicp(9, 16),
        [(255, 0, 0), (0, 196, 39), (0, 46, 247), (150, 150, 150), (0, 13, 5)],
    ),
    "PQ with the peak of a display": (
        MASTERED_AT_600 + cicp(9, 16),
        [(255, 0, 0), (0, 196, 39), (0, 46, 247), (150, 150, 150), (0, 13, 5)],
    ),
}


@pytest.mark.parametrize("name", HDR)
def test_hdr_is_mapped_into_the_range_as_in_a_browser_with_a_warning(tmp_path: Path, name: str) -> None:
    chunks, expected = HDR[name]
    data = png(chunks, HDR_COLORS)
    assert np.abs(decoded(tmp_path / "a.png", data) - np.array(expected)).max() <= 2
    (record,) = scan.scan_images(list_dataset(tmp_path), scan.ScanOptions(min_side=1))
    assert "hdr_tone_mapped" in {scan.note_code(note) for note in record.notes}


@pytest.mark.parametrize("peak", [100, 203, 204, 1000, 10_000])
@pytest.mark.parametrize("transfer", [16, 18])
def test_brighter_light_is_never_darker_and_grays_stay_gray(tmp_path: Path, transfer: int, peak: int) -> None:
    light = chunk(b"cLLI", struct.pack(">II", peak * 10_000, 0))
    grays = [(level,) * 3 for level in range(256)]
    pixels = decoded(tmp_path / "a.png", png(light + cicp(9, transfer), grays))
    assert (np.diff(pixels[:, 0]) >= 0).all()
    assert (np.ptp(pixels, axis=1) <= 1).all()
    assert pixels[0, 0] == 0
    assert pixels[-1, 0] > 200


def test_the_colors_of_an_avif_are_those_of_its_primary_image() -> None:
    """A description before it, as that of a gain map, is not that of the image."""
    data = avif(12, 13)
    other = b"colrnclx" + struct.pack(">HHHB", 9, 16, 9, 128)
    start = data.index(b"ftyp") - 4 + int.from_bytes(data[:4])
    color = iso_boxes.primary_color(
        data[:start] + struct.pack(">I4s", 8 + len(other), b"free") + other + data[start:]
    )
    assert color is not None
    assert color[:2] == (12, 13)
    assert iso_boxes.primary_color(data[:start] + other) is None


@pytest.mark.parametrize("kind", [b"clli", b"mdcv"])
def test_the_peak_of_an_avif_is_read(kind: bytes) -> None:
    """In its container, beside the description of colors."""
    content = struct.pack(">HH", 600, 100) if kind == b"clli" else MASTERED_AT_600[8:32]
    box = struct.pack(">I4s", 8 + len(content), kind) + content
    data = avif(9, 16)
    container, owners = data.index(b"ipco"), data.index(b"ipma")
    size = int.from_bytes(data[container - 4 : container])
    count = sum(1 for _ in iso_boxes.iter_boxes(data, container + 4, container - 4 + size))
    end = container - 4 + size
    bigger = data[: container - 4] + struct.pack(">I", size + len(box)) + data[container:end] + box
    rest = bytearray(data[end:])
    rest[owners - end + 4 + 4 + 4 + 2 + 1] = count + 1  # the first property of the image is the new one
    whole = bytearray(bigger + rest)
    for parent in (b"meta", b"iprp"):
        place = whole.index(parent) - 4
        whole[place : place + 4] = (int.from_bytes(whole[place : place + 4]) + len(box)).to_bytes(4)
    encoding = read_color_encoding(bytes(whole), has_icc=False)
    assert encoding is not None
    assert encoding.peak == 600


@pytest.mark.parametrize(
    "chunks",
    [
        chunk(b"cICP", b"\x01"),
        chunk(b"gAMA", b"\0\0\0\0"),
        gama(0.45455) + chunk(b"cHRM", bytes(32)),
        gama(0.45455) + chunk(b"cHRM", b"\xff" * 32),
        cicp(200, 200),
    ],
)
def test_a_description_without_sense_changes_nothing(tmp_path: Path, chunks: bytes) -> None:
    assert decoded(tmp_path / "a.png", png(chunks)).tolist() == [list(color) for color in COLORS]

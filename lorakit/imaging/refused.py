"""Whole files that a decoder refuses: which kind of TIFF, BMP, JPEG, AVIF or JPEG 2000 they are.

A decoder gives one error for a damaged file and for a kind that it does not know. A file whose parts are all
there is of an unsupported kind; fetching it again would not help.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib

from PIL import Image

from lorakit.imaging import iso_boxes, structure
from lorakit.imaging.file_kinds import CONVERT_REMEDY, RAW_REMEDY, REFETCH_REMEDY, FileProblem

_PHOTOMETRIC = {
    **{0: "gray", 1: "gray", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIE Lab"},
    **{9: "ICC Lab", 10: "ITU Lab", 32803: "raw sensor", 32844: "LogL", 32845: "LogLuv", 34892: "raw"},
}
_RAW_PHOTOMETRIC = (32803, 34892)
_SAMPLE_FORMATS = {1: "", 2: "signed ", 3: "floating-point ", 4: "", 5: "complex ", 6: "complex "}
_COMPRESSION = {
    **{6: "old-style JPEG", 7: "JPEG", 34661: "JBIG", 34676: "SGI Log", 34677: "SGI Log 24"},
    **{
        34712: "JPEG 2000",
        34887: "LERC",
        34892: "lossy DNG",
        34925: "LZMA",
        50000: "Zstandard",
        50001: "WebP",
    },
    50002: "JPEG XL",
}
_PROBED_COMPRESSION = {"webp": "WebP", "zstd": "Zstandard", "lzma": "LZMA"}  # not in every build of libtiff
_JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_BMP_DEPTHS = (0, 1, 2, 4, 8, 16, 24, 32, 64)
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_JPEG_KINDS = {
    **{0xC3: "lossless", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "lossless hierarchical"},
    **{0xC9: "arithmetic-coded", 0xCA: "arithmetic-coded", 0xCB: "lossless arithmetic-coded"},
}


def explain_refused(data: bytes, detail: str) -> FileProblem:
    """Return the reason why a decoder refused a file with the header of its format; `detail` is its error."""
    kind = None
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        kind = _tiff_kind(data)
        if kind and kind.startswith("raw"):
            return FileProblem("camera_raw", "a raw file of a camera", RAW_REMEDY)
        kind = f"a TIFF with {kind}" if kind else None
    elif data.startswith(b"BM") and is_complete_bmp(data):
        kind = "a rare kind of BMP"
    elif data.startswith(b"\xff\xd8"):
        kind = _jpeg_kind(data)
    elif data.startswith(_JPEG_2000) and _is_complete_jpeg_2000(data):
        kind = "a rare kind of JPEG 2000"
    elif data.startswith(b"\x89PNG") and _is_complete_png(data):
        kind = "a PNG with a part that its decoder refuses"
    elif data[4:8] == b"ftyp":
        if not iso_boxes.are_boxes_complete(data):
            message = "damaged, or cut off before its end" + _in_brackets(detail)
            return FileProblem("truncated", message, REFETCH_REMEDY)
        name = "AVIF" if data[8:11] == b"avi" else "HEIC"
        message = f"a complete {name} file that the decoder refuses" + _in_brackets(detail)
        return FileProblem("unsupported_format", message, CONVERT_REMEDY)
    if kind is None:
        message = "a damaged image header" + (f": {detail}" if detail else "")
        return FileProblem("corrupt", message, REFETCH_REMEDY)
    message = f"{kind}, which is not supported" + _in_brackets(detail)
    return FileProblem("unsupported_format", message, CONVERT_REMEDY)


def explain_undecoded(image: Image.Image, data: bytes) -> FileProblem | None:
    """Return the problem of an opened image whose pixels cannot be decoded although nothing is missing."""
    compression = str(image.info.get("compression", ""))
    if image.format == "TIFF" and compression in _PROBED_COMPRESSION and not _can_write_tiff(compression):
        name = _PROBED_COMPRESSION[compression]
        message = f"a TIFF compressed with {name}, for which there is no decoder"
        return FileProblem("unsupported_format", message, CONVERT_REMEDY)
    if data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9") and (kind := _jpeg_kind(data)):
        return FileProblem("unsupported_format", f"{kind}, which the decoder refuses", CONVERT_REMEDY)
    if image.format == "BMP" and is_complete_bmp(data):
        return FileProblem("unsupported_format", "a rare kind of BMP, which is not supported", CONVERT_REMEDY)
    return None


def _is_complete_jpeg_2000(data: bytes) -> bool:
    """Return True if a codestream and the boxes around it are all there and state the same size."""
    place = data.find(b"\xff\x4f\xff\x51")
    if place < 0 or not data.endswith(b"\xff\xd9"):
        return False
    right, bottom, left, top = struct.unpack_from(">4I", data, place + 8)
    if place == 0:
        return bool(right > left and bottom > top)
    header = data.find(b"ihdr")
    same = struct.pack(">II", max(0, bottom - top), max(0, right - left)) == data[header + 4 : header + 12]
    return header > 0 and same and iso_boxes.are_boxes_complete(data)


def _is_complete_png(data: bytes) -> bool:
    """Return True if a PNG has all its chunks, with the right checksums."""
    place = 8
    while place + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + size
        if end + 4 > len(data) or zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4]):
            return False
        if kind == b"IEND":
            return True
        place = end + 4
    return False


def _in_brackets(detail: str) -> str:
    return f" ({detail.rstrip('.')})" if detail else ""


@functools.cache
def _can_write_tiff(compression: str) -> bool:
    """Return True if this build of libtiff has the codec; it has an encoder where it has a decoder."""
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), "TIFF", compression=compression)
    except (OSError, ValueError, KeyError, RuntimeError):
        return False
    return True


def is_complete_bmp(data: bytes) -> bool:
    """Return True if the header of a BMP makes sense and its pixels are all there."""
    if len(data) < 30:
        return False
    offset, header = struct.unpack_from("<II", data, 10)
    if header not in _BMP_HEADERS:
        return False
    if header == 12:
        width, height, _, depth = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, depth, compression = struct.unpack_from("<iiHHI", data, 18)
    palette = 4 * int.from_bytes(data[46:50], "little") if header >= 40 else 0
    if width <= 0 or height == 0 or depth not in _BMP_DEPTHS:
        return False
    if not 14 + header + palette <= offset <= len(data):
        return False
    if compression in (0, 3, 6):
        return offset + (width * depth + 31) // 32 * 4 * abs(height) <= len(data)
    return int.from_bytes(data[2:6], "little") <= len(data)


def _jpeg_kind(data: bytes) -> str | None:
    """Return the kind of a JPEG whose frame is not one of eight bits that every decoder reads, or None."""
    place = 2
    while place + 10 <= len(data) and data[place] == 0xFF:
        code = data[place + 1]
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            if kind := _JPEG_KINDS.get(code):
                return f"a {kind} JPEG"
            precision = data[place + 4]
            return f"a JPEG of {precision} bits" if precision in range(9, 17) else None
        place += 1 if code == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4])
    return None


def _tiff_kind(data: bytes) -> str | None:
    """Return the pixels of the first image of a TIFF in words if the image is all there, or None."""
    try:
        tags = structure.read_tags(data)
    except (struct.error, IndexError, OverflowError):
        return None
    width, height = tags.get(256, (0,))[0], tags.get(257, (0,))[0]
    offsets, counts = tags.get(273) or tags.get(324), tags.get(279) or tags.get(325)
    if not (width and height and offsets and counts):
        return None
    if any(offset + count > len(data) for offset, count in zip(offsets, counts, strict=False)):
        return None
    photometric, bits = tags.get(262, (1,))[0], tags.get(258, (1,))
    if photometric in _RAW_PHOTOMETRIC:
        return "raw sensor data"
    samples = tags.get(277, (1,))[0]
    if photometric not in _PHOTOMETRIC or not 0 < max(bits) <= 64 or not 0 < samples <= 64:
        return None
    format_name = _SAMPLE_FORMATS.get(tags.get(339, (1,))[0], "")
    text = f"{samples} channels ({_PHOTOMETRIC[photometric]}) of {max(bits)} {format_name}bits"
    compression = tags.get(259, (1,))[0]
    return text + (f", compressed with {_COMPRESSION[compression]}" if compression in _COMPRESSION else "")

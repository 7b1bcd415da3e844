"""Mutated image files: chunks, tags, frames and segments that state more than there is."""

from __future__ import annotations

import io
import random
import struct
import zlib

from PIL import Image, PngImagePlugin

from tests.fuzz.mutate import change_bytes
from tests.fuzz.texts import Files

_FORMS = ("PNG", "PNG", "TIFF", "TIFF", "GIF", "JPEG", "JPEG", "WEBP", "BMP", "PPM", "JPEG2000", "AVIF")
_NUMBERS = (0, 1, 2, 255, 65_535, 0x7FFFFFFF, 0xFFFFFFFF, 1000, 8)


def image(rng: random.Random) -> Files:
    """Return an image file of any format."""
    form = rng.choice(_FORMS)
    data = _encoded(rng, form)
    if form == "PNG":
        data = _change_png(rng, data)
    elif form == "TIFF":
        data = _change_tiff(rng, data)
    elif form == "GIF":
        data = _repeat(rng, data, data.find(b",", 13))
    elif form == "JPEG":
        data = _change_jpeg(rng, data)
    if rng.random() < 0.5:
        data = change_bytes(rng, data)
    return {"image.png": data}


def _encoded(rng: random.Random, form: str) -> bytes:
    mode = rng.choice(("RGB", "RGB", "L", "P", "RGBA", "1", "CMYK", "I;16", "LA"))
    picture = Image.effect_noise((16, 12), 60).convert("RGB")
    picture = picture.convert("L").convert("I;16") if mode == "I;16" else picture.convert(mode)
    options: dict[str, object] = {}
    if rng.random() < 0.3:
        options["exif"] = _exif(rng)
    if rng.random() < 0.3:
        options["icc_profile"] = change_bytes(rng, _srgb())
    if form in ("GIF", "TIFF", "WEBP", "PNG") and rng.random() < 0.3:
        options |= {"save_all": True, "append_images": [picture] * rng.choice((1, 3, 40))}
    if form == "TIFF":
        options["compression"] = rng.choice(("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"))
    if form == "PNG" and rng.random() < 0.2:
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", "\nexif\n  9\n" + _exif(rng).hex(), zip=rng.random() < 0.5)
        options["pnginfo"] = info
    buffer = io.BytesIO()
    try:
        picture.save(buffer, form, **options)
    except Exception:  # a format without this mode or option; which errors differs
        buffer = io.BytesIO()
        picture.convert("L" if form != "AVIF" else "RGB").save(buffer, form)
    return buffer.getvalue()


def _srgb() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _exif(rng: random.Random) -> bytes:
    """Return EXIF whose tags may all point to the whole block."""
    count = rng.choice((1, 3, 400, 3000))
    size = 8 + 2 + 12 * count + 4
    entries = b"".join(
        struct.pack("<HHII", 0x0100 + number, rng.choice((1, 2, 3, 4, 5, 7)), size, 0)
        for number in range(count)
    )
    orientation = struct.pack("<HHII", 0x0112, 3, 1, rng.choice(_NUMBERS))
    following = rng.choice((0, 8, 0xFFFFFFFF))
    block = (
        struct.pack("<2sHIH", b"II", 42, 8, count) + orientation + entries[12:] + struct.pack("<I", following)
    )
    return b"Exif\0\0" + block[:65_000]


def _change_png(rng: random.Random, data: bytes) -> bytes:
    chunks, place = [], 8
    while place + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        chunks.append((kind, data[place + 8 : place + 8 + size]))
        place += 12 + size
    for _ in range(rng.randrange(3)):
        index = rng.randrange(len(chunks))
        kind, content = chunks[index]
        action = rng.randrange(5)
        if action == 0:
            chunks[index:index] = [(kind, content)] * rng.choice((1, 30, 20_000))
        elif action == 1:
            chunks[index] = (kind, change_bytes(rng, content))
        elif action == 2 and kind == b"IHDR":
            width, height = rng.choice(_NUMBERS), rng.choice(_NUMBERS)
            chunks[index] = (kind, struct.pack(">II", width, height) + content[8:])
        elif action == 3:
            text = rng.choice((b"zTXt", b"iTXt", b"tEXt", b"iCCP", b"eXIf", b"acTL", b"fcTL"))
            chunks.insert(index, (text, b"a\0\0" + zlib.compress(bytes(rng.choice((10, 5_000_000))))))
        else:
            del chunks[index]
            chunks = chunks or [(kind, content)]
    parts = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    ]
    return data[:8] + b"".join(parts)


def _change_tiff(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    place = struct.unpack_from("<I", changed, 4)[0]
    if place + 2 > len(changed) or changed[:2] != b"II":
        return data
    count = struct.unpack_from("<H", changed, place)[0]
    for _ in range(rng.randrange(4)):
        entry = place + 2 + 12 * rng.randrange(max(1, count))
        start, form = rng.choice(((0, "<H"), (2, "<H"), (4, "<I"), (8, "<I")))
        if entry + 12 <= len(changed):
            limit = 0xFFFF if form == "<H" else 0xFFFFFFFF
            struct.pack_into(form, changed, entry + start, rng.choice(_NUMBERS) & limit)
    if rng.random() < 0.2 and place + 6 + 12 * count <= len(changed):  # a chain of pages
        pages = rng.choice((3, 500, 20_000))
        directory = bytes(changed[place : place + 2 + 12 * count])
        start = len(changed)
        for number in range(pages):
            following = (
                start + (number + 1) * (len(directory) + 4) if number + 1 < pages else rng.choice((0, place))
            )
            changed += directory + struct.pack("<I", following)
        struct.pack_into("<I", changed, place + 2 + 12 * count, start)
    return bytes(changed)


def _change_jpeg(rng: random.Random, data: bytes) -> bytes:
    marker = rng.choice((0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xC4, 0xDB, 0xDD))
    content = rng.choice(
        (b"", _exif(rng), b"ICC_PROFILE\0\1\1" + bytes(50), b"MPF\0" + _exif(rng)[6:], b"8BIM" * 9)
    )
    segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    if rng.random() < 0.5:
        data = data[:2] + segment * rng.choice((1, 3, 300, 20_000 if len(content) < 100 else 30)) + data[2:]
    return _repeat(rng, data, data.find(b"\xff\xda"))


def _repeat(rng: random.Random, data: bytes, place: int) -> bytes:
    """Repeat the end of the file: scans of a JPEG, frames of a GIF."""
    if place < 0 or rng.random() < 0.6:
        return data
    return data[:-2] + data[place:-2] * rng.choice((1, 20, 3000)) + data[-2:]

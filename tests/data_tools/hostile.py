"""A folder of hostile files, generated from a seed.

Every format and mode that Pillow writes, cut and flipped files, bombs, links, impostors, odd names.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import socket
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]
_PLAIN = ("png", "jpg", "webp", "gif", "tiff", "bmp", "avif", "jp2", "ppm", "qoi")
_NAMES = (
    "a b",
    "\U0001f600",
    "-rf",
    "x\ny",
    "%s%n",
    "e\u0301",
    "\u00e9",
    "t.",
    "n" * 240,
    "<img onerror=1>",
    "$(id)",
    ";ls",
)
_SUFFIX_OF = {"jpg": "JPEG", "tiff": "TIFF", "jp2": "JPEG2000"}


def fill(folder: Path, count: int, *, seed: int = 0, bombs: bool = True) -> Path:
    """Make `folder` with about `count` files; `bombs` adds a few that take seconds to decode."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    _specials(folder)
    for name, data in _impostors():
        (folder / name).write_bytes(data)
    for number, data in enumerate(_bombs(large=bombs)):
        (folder / f"bomb{number}.png").write_bytes(data)
    for number, name in enumerate(_NAMES):
        (folder / f"{name}.png").write_bytes(_encoded(_image(number, rng), "PNG"))
    for (form, mode), data in _formats().items():
        suffix = next((s for s, f in Image.registered_extensions().items() if f == form), ".png")
        (folder / f"{form}-{mode.replace(';', '_')}{suffix}").write_bytes(data)
    sources = {
        kind: _encoded(_image(7, rng, (96, 64)), _SUFFIX_OF.get(kind, kind.upper())) for kind in _PLAIN
    }
    number = 0
    while sum(len(files) for *_, files in os.walk(folder)) < count:
        kind = _PLAIN[number % len(_PLAIN)]
        place = folder / ("deep/er" if number % 5 == 0 else ".")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:04d}.{kind}").write_bytes(_damaged(sources[kind], number, rng))
        number += 1
    return folder


def _image(seed: int, rng: random.Random, size: tuple[int, int] = (64, 48)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _formats() -> dict[tuple[str, str], bytes]:
    """Yield each pair of format and mode that this Pillow can write."""
    Image.init()
    made = {}
    for form in sorted(Image.SAVE):
        for mode in MODES:
            with contextlib.suppress(Exception), warnings.catch_warnings():  # most pairs cannot be
                warnings.simplefilter("ignore")
                made[form, mode] = _encoded(_in_mode(mode), form)
    return made


def _in_mode(mode: str) -> Image.Image:
    base = _image(3, random.Random(0))
    if mode == "I;16":
        return Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
    if mode == "LAB":
        return Image.merge("LAB", base.split())
    return base.convert("RGBA").convert("LA").convert("PA") if mode == "PA" else base.convert(mode)


def _damaged(data: bytes, number: int, rng: random.Random) -> bytes:
    """Return the data unchanged, truncated, with flipped bits, zeroed, doubled or extended, in turn."""
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 3, 40))):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    cut = rng.randrange(1, len(data))
    ways = (
        data,
        data[:cut],
        bytes(flipped),
        data[:cut] + bytes(len(data) - cut),
        data + data,
        data + b"\0" * 999,
    )
    return ways[number % len(ways)]


def _impostors() -> Iterator[tuple[str, bytes]]:
    texts = {
        "empty.jpg": b"",
        "page.jpg": b"<!DOCTYPE html><html>404</html>",
        "answer.png": b'{"error": "rate limited"}',
        "draw.svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "archive.png": b"PK\x03\x04" + bytes(60),
        "program.jpg": b"\x7fELF" + bytes(60),
        "script.png": b"#!/bin/sh\ntouch owned\n",
        "paper.jpg": b"%PDF-1.7\n%%EOF",
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\n",
        "new.jxl": b"\xff\x0a" + bytes(64),
        "phone.heic": b"\x00\x00\x00\x18ftypheic" + bytes(64),
        "film.mp4.jpg": b"\x00\x00\x00\x18ftypisom" + bytes(64),
        ".hidden.png": b"x",
        "notes.md": b"x",
    }
    yield from texts.items()


def _specials(folder: Path) -> None:
    """Make links, pipes, sockets and folders with image names."""
    outside = folder.with_name(f"{folder.name}-outside.png")
    outside.write_bytes(_encoded(_image(1, random.Random(0)), "PNG"))
    links: dict[str, str | Path] = {
        "out.png": outside,
        "gone.png": "nothing.png",
        "self.png": "self.png",
        "loop": folder,
        "passwd.png": "/etc/passwd",
        "null.png": "/dev/null",
        "zero.png": "/dev/zero",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    place = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(folder)  # socket paths are limited to about 100 bytes
        with contextlib.suppress(OSError):
            server.bind("socket.png")
        os.chdir(place)
    os.link(outside, folder / "hard.png")
    (folder / "locked.png").write_bytes(outside.read_bytes())
    (folder / "locked.png").chmod(0)
    with open(os.fsencode(folder) + b"/\xff\xfe.png", "wb") as file:
        file.write(outside.read_bytes())


def _bombs(*, large: bool) -> Iterator[bytes]:
    """Return small files that need much memory or time."""
    yield png(30_000, 30_000, 1, 0, bytes(1 + 30_000 // 8), 30_000)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a" * (70 << 20), zip=True)
    yield _encoded(Image.new("RGB", (32, 32)), "PNG", pnginfo=text)
    yield b"GIF89a" + struct.pack("<2H", 65_535, 65_535) + bytes(40)
    yield (
        b"BM"
        + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHI", 40, 60_000, 60_000, 1, 24, 0)
        + bytes(24)
    )
    jpeg = bytearray(_encoded(Image.new("RGB", (32, 32)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">2H", 65_500, 65_500)
    yield bytes(jpeg)
    yield _many_scans()
    frames = [Image.new("L", (16, 16), shade % 256) for shade in range(400)]
    yield _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield _tiff_loop()
    yield _encoded(Image.new("RGB", (64, 64)), "JPEG", icc_profile=os.urandom(60_000))
    yield _encoded(Image.new("RGB", (64, 64)), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 60_000)
    yield _encoded(Image.new("RGB", (20, 4000)), "PNG")
    yield _encoded(Image.new("RGB", (1, 1)), "PNG")
    if large:  # just below the limits: they must be decoded, and fit
        makers: dict[str, Callable[[], bytes]] = {
            "rgb": lambda: png(10_900, 10_900, 8, 2, bytes(1 + 3 * 10_900), 10_900),
            "rgba": lambda: png(10_900, 10_900, 8, 6, bytes(1 + 4 * 10_900), 10_900),
            "grey16": lambda: png(10_900, 10_900, 16, 0, bytes(1 + 2 * 10_900), 10_900),
            "webp": lambda: _encoded(Image.new("RGB", (7_700, 7_700)), "WEBP", lossless=True, method=0),
            "tiff": lambda: _encoded(
                Image.new("CMYK", (10_900, 10_900)), "TIFF", compression="tiff_adobe_deflate"
            ),
            "jpeg": lambda: _encoded(Image.new("RGB", (10_900, 10_900)), "JPEG", progressive=True),
        }
        for make in makers.values():
            yield make()


def png(width: int, height: int, depth: int, color: int, row: bytes, rows: int) -> bytes:
    """Return a PNG of one repeated row, without ever holding its pixels in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    header = struct.pack(">2I5B", width, height, depth, color, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _many_scans() -> bytes:
    """Return a progressive JPEG whose last scan is repeated five thousand times."""
    data = _encoded(Image.effect_noise((64, 64), 60), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 5_000 + b"\xff\xd9"


def _tiff_loop() -> bytes:
    """Return a TIFF whose second directory is its first one."""
    data = bytearray(_encoded(Image.new("L", (32, 32)), "TIFF"))
    place = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, place)[0]
    struct.pack_into("<I", data, place + 2 + 12 * entries, place)
    return bytes(data)

"""Decoded pixels against what Chromium shows, for files of every encoder that a browser has a decoder for.

Skipped without a browser. Left out is what Chromium shows wrongly: inks with a profile (it replaces black ink
by the other three before it applies the profile, so that pure black and all three inks give one color), the
alpha of AVIF (it reads 16 to 235 as the range of the plane, which is 0 to 255), and the orientation of WebP.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageCms

from lorakit.imaging import decode
from tests import browser
from tests.data_tools.folders import photo
from tests.data_tools.one_bad_file import encoded
from tests.imaging.test_color_encoding import BT2020, PEAK_600, avif, chrm, chunk, cicp, gama
from tests.imaging.test_decode import P3, icc, matrix_profile

SIZE = (96, 64)
MAX_MEAN, MAX_P99 = 2.0, 4.0  # levels of 255, over all pixels and channels
SHOW = """(async () => {
  const image = new Image();
  await new Promise((resolve, reject) => { image.onload = resolve; image.onerror = reject; image.src = %s; });
  const canvas = document.createElement('canvas');
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const context = canvas.getContext('2d');
  context.fillStyle = '#fff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  return canvas.toDataURL('image/png');
})()"""
ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
WIDE = {"icc_profile": matrix_profile(P3, 1.8)}


def image(mode: str = "RGB") -> Image.Image:
    base = photo(1, SIZE)
    if mode in ("RGBA", "LA"):
        base.putalpha(Image.linear_gradient("L").resize(base.size))
    if mode == "I;16":
        return Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
    return base if base.mode == mode else base.convert(mode)


def save(form: str, mode: str = "RGB", **options: object) -> bytes:
    return encoded(image(mode), form, **options)


def with_chunks(*chunks: bytes) -> bytes:
    data = save("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def png16(color: int, *, is_interlaced: bool = False) -> bytes:
    """Return a PNG of 16 bits per channel; color 2 is RGB, 4 gray with alpha, 6 RGB with alpha."""
    mode = {2: "RGB", 4: "LA", 6: "RGBA"}[color]
    pixels = np.asarray(image(mode)).astype(">u2") * 257
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    rows = b""
    for left, top, step, height in passes if is_interlaced else [(0, 0, 1, 1)]:
        rows += b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels[top::height, left::step])
    header = struct.pack(">IIBBBBB", 96, 64, 16, color, 0, 0, int(is_interlaced))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def with_profile(data: bytes, profile: bytes) -> bytes:
    return data[:33] + chunk(b"iCCP", b"name\0\0" + zlib.compress(profile)) + data[33:]


def gray_profile() -> bytes:
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(1.4 * 256))
    return icc(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def color_keyed() -> bytes:
    colors = image().quantize(8).convert("RGB")
    return encoded(colors, "PNG", transparency=colors.getpixel((5, 5)))


def rotated(form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(form, exif=exif.tobytes())


SRGB = {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
CASES = {
    "JPEG": save("JPEG", quality=90),
    "JPEG of 4:4:4": save("JPEG", quality=90, subsampling=0),
    "progressive JPEG": save("JPEG", progressive=True),
    "gray JPEG": save("JPEG", "L"),
    "gray JPEG with a profile": save("JPEG", "L", icc_profile=gray_profile()),
    "JPEG with a wide profile": save("JPEG", quality=90, **WIDE),
    "JPEG with sRGB": save("JPEG", quality=90, **SRGB),
    "CMYK JPEG": save("JPEG", "CMYK", quality=90),
    "rotated JPEG": rotated("JPEG"),
    **{f"{mode} PNG": save("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    "palette PNG with alpha": encoded(image("RGBA").quantize(32), "PNG"),
    "PNG with a color key": color_keyed(),
    "PNG with a wide profile": save("PNG", **WIDE),
    "transparent PNG with a wide profile": save("PNG", "RGBA", **WIDE),
    "palette PNG with a wide profile": save("PNG", "P", **WIDE),
    "gray PNG with a profile": save("PNG", "L", icc_profile=gray_profile()),
    "16-bit PNG": png16(2),
    "16-bit gray PNG with alpha": png16(4),
    "16-bit gray PNG with alpha and a profile": with_profile(png16(4), gray_profile()),
    "16-bit PNG with alpha": png16(6),
    "interlaced 16-bit PNG": png16(2, is_interlaced=True),
    "rotated PNG": rotated("PNG"),
    "PNG with cICP": with_chunks(cicp(9, 1)),
    "PNG with cICP and another profile": with_chunks(cicp(12, 13)),
    "PNG with gAMA": with_chunks(gama(1 / 1.8)),
    "PNG with gAMA and cHRM": with_chunks(gama(0.45455), chrm(BT2020)),
    "PQ PNG": with_chunks(PEAK_600, cicp(9, 16)),
    "HLG PNG": with_chunks(cicp(9, 18)),
    **{f"{mode} GIF": save("GIF", mode) for mode in ("L", "P", "RGB")},
    "transparent GIF": encoded(
        Image.composite(image("RGBA"), Image.new("RGBA", (96, 64)), image("1")), "GIF"
    ),
    **{f"{mode} BMP": save("BMP", mode) for mode in ("1", "L", "P", "RGB")},
    "WebP": save("WEBP", quality=90),
    "lossless WebP with alpha": save("WEBP", "RGBA", lossless=True),
    "WebP with a wide profile": save("WEBP", quality=90, **WIDE),
    **{f"AVIF of {kind}": save("AVIF", subsampling=kind) for kind in ("4:2:0", "4:2:2", "4:4:4", "4:0:0")},
    "AVIF with a wide profile": save("AVIF", quality=90, **WIDE),
    "AVIF of Display P3": avif(12, 13),
    "AVIF of BT.2020": avif(9, 1),
    "rotated AVIF": rotated("AVIF"),
}


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Browser]:
    with browser.browser("--force-color-profile=srgb") as tab:
        yield tab


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_of_a_browser(page: browser.Browser, name: str) -> None:
    data = CASES[name]
    kind = next(form for form in ("PNG", "JPEG", "GIF", "BMP", "WebP", "AVIF") if form in name)
    address = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    answer = page.evaluate(SHOW % json.dumps(address))
    with Image.open(io.BytesIO(base64.b64decode(answer.partition(",")[2]))) as picture:
        expected = np.asarray(picture.convert("RGB")).astype(int)
    pixels = np.asarray(decode.decode_bytes(data, where=name).image).astype(int)
    assert pixels.shape == expected.shape
    difference = np.abs(pixels - expected)
    assert difference.mean() <= MAX_MEAN
    assert np.percentile(difference, 99) <= MAX_P99

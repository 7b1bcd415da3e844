"""Decoding of files as cameras, browsers, phones or attackers produce them."""

from __future__ import annotations

import io
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, PngImagePlugin, features

from lorakit.core.errors import ConfigError, DataError
from lorakit.imaging import decode, image_reader, open_image
from lorakit.imaging.decode import ImageError
from lorakit.manifest import Record

STORED_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # transposition by which a camera stores an upright image: the inverse of the reader's


def make_image(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    """A smooth, asymmetric test image."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def code_of(path: Path, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        decode.decode_image(path, **options)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3
    return caught.value.code


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = make_image()
    stored = upright.transpose(STORED_TRANSPOSITIONS[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(suffix, {})
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    decoded = decode.decode_image(tmp_path / f"a.{suffix}")
    if suffix == "jpg":  # the reference is the same JPEG without the tag, transposed here
        stored.save(tmp_path / "plain.jpg", **options)
        with Image.open(tmp_path / "plain.jpg") as plain:
            back = {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
            turn = back.get(orientation, STORED_TRANSPOSITIONS.get(orientation))
            upright = plain.convert("RGB").transpose(turn) if turn is not None else plain.convert("RGB")
    assert decoded.size == (48, 32)
    assert decoded.tobytes() == upright.tobytes()


def test_broken_exif_is_ignored_with_a_note(tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\x7f", b"\x00")):
        path = tmp_path / f"{number}.jpg"
        make_image().save(path, exif=exif)
        assert decode.decode_image(path).size == (48, 32)
    decoded = decode.decode_bytes((tmp_path / "0.jpg").read_bytes(), where="0.jpg")
    assert [note.split(":")[0] for note in decoded.notes] == ["broken_exif"]


def icc(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A minimal ICC v2 profile around `tags` (ICC.1:2001-04)."""
    plain = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061),
    }
    table, body, offset = b"", b"", 128 + 4 + 12 * (len(plain) + len(tags))
    for name, data in (plain | tags).items():
        padded = data + bytes(-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(padded))
        body += padded
    kinds = (b"lcms", 0x02400000, device, space, connection, b"acsp")
    header = struct.pack(">I4sI4s4s4s12x4s", offset + len(body), *kinds)
    header += bytes(68 - len(header)) + struct.pack(">3i", 63190, 65536, 54061)
    count = struct.pack(">I", len(plain) + len(tags))
    return header + bytes(128 - len(header)) + count + table + body


def matrix_profile(primaries: tuple[tuple[float, float], ...], gamma: float) -> bytes:
    """A display profile from CIE xy primaries (white D65, adapted to D50) and a gamma."""
    columns = rgb_to_xyz_d50(primaries)
    tags = {}
    for index, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ")):
        values = [round(value * 65536) for value in columns[:, index]]
        tags[name] = b"XYZ " + bytes(4) + struct.pack(">3i", *values)
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        tags[name] = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return icc(b"mntr", b"RGB ", b"XYZ ", tags)


def ink_profile(lightness: float) -> bytes:
    """A CMYK profile: no ink is white, solid cyan a gray of this CIE lightness, anything more is black."""
    corners = bytearray(bytes([255, 128, 128]) + bytes([0, 128, 128]) * 15)
    corners[8 * 3] = round(lightness * 2.55)  # the first channel, cyan, varies slowest
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    curve = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + curve * 4 + corners + curve * 3
    return icc(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut})


def rgb_to_xyz_d50(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Linear RGB to XYZ, Bradford-adapted from D65 to D50 (textbook derivation, used as the reference)."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([0.95047, 1.0, 1.08883])
    matrix = xyz * np.linalg.solve(xyz, white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = np.diag((bradford @ [0.96422, 1.0, 0.82521]) / (bradford @ white))
    return np.linalg.inv(bradford) @ scale @ bradford @ matrix


P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))


def test_display_p3_becomes_srgb_within_two_levels(tmp_path: Path) -> None:
    values = np.asarray(make_image(64, 64)).astype(np.float64)
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "p3.png", icc_profile=matrix_profile(P3, 2.2))
    linear = (values / 255) ** (round(2.2 * 256) / 256)
    to_srgb = np.linalg.inv(rgb_to_xyz_d50(SRGB)) @ rgb_to_xyz_d50(P3)
    target = np.clip(linear @ to_srgb.T, 0, 1)
    encoded = np.where(target <= 0.0031308, 12.92 * target, 1.055 * target ** (1 / 2.4) - 0.055) * 255
    decoded = np.asarray(decode.decode_image(tmp_path / "p3.png")).astype(np.float64)
    assert np.abs(decoded - values).max() > 10  # the profile matters for this image
    assert np.abs(decoded - encoded).max() <= 2


def test_an_srgb_profile_changes_no_pixel(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    make_image().save(tmp_path / "a.png", icc_profile=profile)
    assert decode.decode_image(tmp_path / "a.png").tobytes() == make_image().tobytes()


def test_a_broken_profile_is_ignored_with_a_note() -> None:
    buffer = io.BytesIO()
    make_image().save(buffer, "PNG", icc_profile=b"nonsense" * 40)
    decoded = decode.decode_bytes(buffer.getvalue(), where="a.png")
    assert decoded.image.tobytes() == make_image().tobytes()
    assert [note.split(":")[0] for note in decoded.notes] == ["broken_icc"]


def test_colors_of_transparent_pixels_are_never_visible(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0] = 255  # red everywhere, visible only in the right half
    rgba[:, 4:, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    on_white = np.asarray(decode.decode_image(tmp_path / "a.png"))
    assert (on_white[:, :4] == 255).all()
    assert (on_white[:, 4:] == (255, 0, 0)).all()
    on_blue = np.asarray(decode.decode_image(tmp_path / "a.png", background=(0, 0, 255)))
    assert (on_blue[:, :4] == (0, 0, 255)).all()
    rgba[..., 3] = 128
    Image.fromarray(rgba).save(tmp_path / "half.png")
    assert (
        np.abs(np.asarray(decode.decode_image(tmp_path / "half.png")).astype(int) - (255, 127, 127)).max()
        <= 1
    )


def _la() -> Image.Image:
    return Image.fromarray(np.stack([np.full((4, 4), 200), np.eye(4) * 255], -1).astype(np.uint8), "LA")


def _palette() -> Image.Image:
    image = Image.fromarray(np.eye(4, dtype=np.uint8), "P")
    image.putpalette([255, 0, 0, 200, 200, 200])
    image.info["transparency"] = 0
    return image


def _keyed(mode: str, key: object) -> Image.Image:
    image = Image.fromarray((np.eye(4) * 200).astype(np.uint8)).convert(mode)
    image.info["transparency"] = key
    return image


@pytest.mark.parametrize(
    "make",
    [_la, _palette, lambda: _keyed("L", 0), lambda: _keyed("RGB", (0, 0, 0)), lambda: _keyed("P", 0)],
    ids=["LA", "P+tRNS", "L+tRNS", "RGB+tRNS", "P from L"],
)
def test_every_kind_of_transparency_is_composited(tmp_path: Path, make: Callable[[], Image.Image]) -> None:
    make().save(tmp_path / "a.png", transparency=make().info.get("transparency"))
    decoded = np.asarray(decode.decode_image(tmp_path / "a.png", background=(0, 255, 0)))
    diagonal = np.eye(4, dtype=bool)
    assert (decoded[diagonal] == 200).all()
    assert (decoded[~diagonal] == (0, 255, 0)).all()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 256, 257, 32768, 65535, 511]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    decoded = np.asarray(decode.decode_image(tmp_path / f"a.{suffix}"))
    assert decoded[0, :, 0].tolist() == [0, 1, 1, 128, 255, 2]
    assert (decoded == decoded[..., :1]).all()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">2I5B", width, height, depth, color, 0, 0, 0)
    chunks = [
        png_chunk(b"IHDR", header),
        *extra,
        png_chunk(b"IDAT", zlib.compress(rows)),
        png_chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_sixteen_bit_color_is_scaled(tmp_path: Path) -> None:
    row = struct.pack(">6H", 65535, 256, 0, 32768, 65535, 0)
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, b"\0" + row))
    assert np.asarray(decode.decode_image(tmp_path / "a.png")).tolist() == [[[255, 1, 0], [128, 255, 0]]]


def test_a_cmyk_jpeg_has_the_right_colors(tmp_path: Path) -> None:
    for name, ink, color in (
        ("red", (0, 255, 255, 0), (255, 0, 0)),
        ("white", (0, 0, 0, 0), (255, 255, 255)),
    ):
        Image.new("CMYK", (16, 16), ink).save(tmp_path / f"{name}.jpg", quality=95)
        decoded = np.asarray(decode.decode_image(tmp_path / f"{name}.jpg")).astype(int)
        assert np.abs(decoded - color).max() <= 3, name
    # Inks are stored inverted, as Adobe's marker states; files without the marker are read in the same way.
    data = (tmp_path / "red.jpg").read_bytes()
    offset = data.index(b"Adobe") - 4
    (tmp_path / "plain.jpg").write_bytes(
        data[:offset] + data[offset + 2 + int.from_bytes(data[offset + 2 : offset + 4]) :]
    )
    unmarked = np.asarray(decode.decode_image(tmp_path / "plain.jpg")).astype(int)
    assert np.abs(unmarked - (255, 0, 0)).max() <= 3


def test_a_cmyk_profile_is_applied(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    cyan.save(tmp_path / "a.jpg", quality=95, icc_profile=ink_profile(60))
    luminance = ((60 + 16) / 116) ** 3  # CIE L* to Y, then sRGB's curve
    gray = 255 * (1.055 * luminance ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(decode.decode_image(tmp_path / "a.jpg")).astype(float) - gray).max() <= 3
    cyan.save(tmp_path / "plain.jpg", quality=95)
    assert np.asarray(decode.decode_image(tmp_path / "plain.jpg"))[0, 0, 0] < 5


@pytest.mark.parametrize("tag", [{254: 1}, {50706: bytes([1, 4, 0, 0])}], ids=["preview", "dng"])
def test_the_preview_in_a_raw_file_is_refused(tmp_path: Path, tag: dict[int, object]) -> None:
    make_image().save(tmp_path / "a.dng", "TIFF", tiffinfo=tag)
    assert code_of(tmp_path / "a.dng") == "camera_raw"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_rotated_once(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = make_image().transpose(STORED_TRANSPOSITIONS[orientation]) if orientation > 1 else make_image()
    stored.save(tmp_path / "a.avif", exif=exif, quality=95)
    difference = np.asarray(decode.decode_image(tmp_path / "a.avif")).astype(int) - np.asarray(make_image())
    assert np.abs(difference).mean() < 4


def test_lab_tiff_is_converted(tmp_path: Path) -> None:
    lab = Image.merge("LAB", [Image.new("L", (4, 4), value) for value in (255, 128, 128)])
    lab.save(tmp_path / "a.tiff")
    assert np.abs(np.asarray(decode.decode_image(tmp_path / "a.tiff")).astype(int) - 255).max() <= 2


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    assert code_of(tmp_path / "a.tiff") == "unsupported_bit_depth"


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_truncated_file_is_detected(tmp_path: Path, suffix: str, fraction: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    assert code_of(path) in ("truncated", "corrupt")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "html_or_xml"),
        (b'\xef\xbb\xbf <?xml version="1.0"?><svg xmlns="x"><script>1</script></svg>', "svg"),
        (b"<svg onload=alert(1)>", "svg"),
        (b'{"error": "rate limited"}', "json_file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "lfs_pointer"),
        (b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a" + bytes(64), "no_decoder"),
        (b"plain text", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "corrupt"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "corrupt"),
    ],
    ids=[
        "empty",
        "html",
        "svg",
        "bare-svg",
        "json_file",
        "lfs",
        "jxl",
        "text",
        "eps",
        "png-header",
        "jpeg-header",
    ],
)
def test_files_that_are_no_images_have_their_own_codes(tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    assert code_of(path) == code


def test_the_error_of_heic_without_a_decoder_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_image, "decodable_formats", lambda: ("PNG", "JPEG"))
    (tmp_path / "a.heic").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(64))
    with pytest.raises(ImageError, match="pillow-heif") as caught:
        decode.decode_image(tmp_path / "a.heic")
    assert caught.value.code == "no_decoder"


def test_the_content_decides_about_the_format_not_the_name(tmp_path: Path) -> None:
    make_image().save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / "a.jpg")
    decoded = decode.decode_bytes((tmp_path / "a.jpg").read_bytes(), where="a.jpg")
    assert decoded.format == "PNG"
    assert decoded.image.tobytes() == make_image().tobytes()


def _animate(path: Path) -> None:
    frames = [make_image(seed=seed) for seed in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("name", "code"),
    [("a.gif", "animated"), ("a.webp", "animated"), ("a.png", "animated"), ("a.tiff", "multipage")],
)
def test_animations_are_refused_unless_the_first_frame_is_requested(
    tmp_path: Path, name: str, code: str
) -> None:
    _animate(tmp_path / name)
    assert code_of(tmp_path / name) == code
    decoded = decode.decode_bytes((tmp_path / name).read_bytes(), where=name, first_frame=True)
    assert decoded.is_multi_frame
    difference = np.asarray(decoded.image).astype(int) - np.asarray(make_image(seed=0))
    assert np.abs(difference).mean() < 12  # GIF has 256 colors, WebP is lossy


def test_a_jpeg_with_a_second_image_is_a_still_image(tmp_path: Path) -> None:
    _animate(tmp_path / "a.mpo")
    assert decode.decode_image(tmp_path / "a.mpo").size == (48, 32)


def test_a_decompression_bomb_is_refused_before_memory_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = b"\0" + bytes(30000 // 8)
    (tmp_path / "bomb.png").write_bytes(png(30000, 30000, 1, 0, row * 30000))
    # Pillow allocates here; the peak of the process would include that of earlier tests.
    monkeypatch.setattr(
        ImageFile.ImageFile, "load_prepare", lambda image: pytest.fail("memory was allocated")
    )
    assert code_of(tmp_path / "bomb.png") == "too_many_pixels"


def test_the_pixel_limit_is_not_left_in_pillow(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    for suffix in ("png", "jpg", "webp", "gif", "tiff"):
        path = tmp_path / f"a.{suffix}"
        make_image(100, 100).save(path)
        assert code_of(path, max_pixels=9_999) == "too_many_pixels"
        assert decode.decode_image(path, max_pixels=10_000).size == (100, 100)
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_huge_text_chunk_is_refused(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a" * (80 << 20), zip=True)
    make_image().save(tmp_path / "a.png", pnginfo=info)
    assert (tmp_path / "a.png").stat().st_size < 1 << 20
    assert code_of(tmp_path / "a.png") == "unsupported_format"


def test_special_files_are_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    began = time.process_time()
    assert code_of(tmp_path / "pipe.png") == "not_a_file"
    assert time.process_time() - began < 2
    assert code_of(tmp_path) == "not_a_file"
    with socket.socket(socket.AF_UNIX) as server:
        place = os.getcwd()
        os.chdir(tmp_path)  # socket paths are limited to about 100 bytes
        try:
            server.bind("s.png")
        finally:
            os.chdir(place)
    assert code_of(tmp_path / "s.png") == "not_a_file"
    assert code_of(tmp_path / "absent.png") == "missing"


def test_converting_large_images_in_strips_gives_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    variants = {
        "rgba.png": make_image().convert("RGBA").quantize(32),
        "cmyk.tiff": make_image().convert("CMYK"),
        "grey16.png": Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 42),
        "p3.png": make_image(),
    }
    for name, image in variants.items():
        for orientation in range(1, 9):
            exif[0x0112] = orientation
            profile = {"icc_profile": matrix_profile(P3, 2.2)} if name == "p3.png" else {}
            image.save(tmp_path / name, exif=exif, **profile)
            whole = decode.decode_image(tmp_path / name)
            monkeypatch.setattr(image_reader, "STRIP_PIXELS", 48 * 5)
            assert decode.decode_image(tmp_path / name).tobytes() == whole.tobytes(), (name, orientation)
            assert inspect(tmp_path / name).content_hash == decode.pixel_hash(whole)
            monkeypatch.undo()


def inspect(path: Path) -> decode.ImageInfo:
    options = {"background": decode.WHITE, "max_pixels": decode.MAX_PIXELS, "first_frame": False}
    return decode.inspect_image(decode.open_source(path.read_bytes(), where=str(path), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_inspecting_an_image_gives_the_facts_of_full_decoding(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    make_image(2400, 1600).save(path, exif=exif)
    info, whole = inspect(path), decode.decode_image(path)
    assert info.size == whole.size
    assert decode.THUMBNAIL_SIDE <= max(info.thumbnail.size) < 2 * decode.THUMBNAIL_SIDE
    reference = whole.resize(info.thumbnail.size, Image.Resampling.BOX)
    difference = np.asarray(info.thumbnail).astype(int) - np.asarray(reference)
    assert np.abs(difference).mean() < 1
    assert (info.content_hash == decode.pixel_hash(whole)) is (suffix == "png")


def test_the_content_hash_of_a_jpeg_depends_on_the_data_that_determine_its_pixels(tmp_path: Path) -> None:
    plain = io.BytesIO()
    make_image(96, 64).save(plain, "JPEG", quality=90)
    data = plain.getvalue()
    comment = data[:2] + b"\xff\xfe\x00\x08edited" + data[2:]
    exif, rotated = Image.Exif(), Image.Exif()
    exif[0x010E], rotated[0x0112] = "a description", 6
    variants = {"comment": comment, "trailing": data + b"\xff\xd8trailer"}
    for name, options in {
        "exif": {"exif": exif},
        "rotated": {"exif": rotated},
        "quality": {"quality": 91},
        "progressive": {"progressive": True},
        "profile": {"icc_profile": matrix_profile(P3, 2.2)},
    }.items():
        buffer = io.BytesIO()
        make_image(96, 64).save(buffer, "JPEG", **{"quality": 90, **options})
        variants[name] = buffer.getvalue()
    hashes = {}
    for name, content in {"plain": data, **variants}.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
        hashes[name] = inspect(tmp_path / f"{name}.jpg").content_hash
    assert {name for name, value in hashes.items() if value == hashes["plain"]} == {
        "plain",
        "comment",
        "trailing",
        "exif",
    }


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}]
)
def test_the_fast_jpeg_decoder_gives_the_pixels_of_pillow(
    tmp_path: Path, mode: str, options: dict[str, object]
) -> None:
    make_image(131, 97).convert(mode).save(tmp_path / "a.jpg", quality=85, **options)
    with Image.open(tmp_path / "a.jpg") as plain:
        assert decode.decode_image(tmp_path / "a.jpg").tobytes() == plain.convert("RGB").tobytes()


def test_a_jpeg_with_thousands_of_scans_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    make_image().save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:-2] + data[last:-2] * 1000 + b"\xff\xd9")
    began = time.process_time()
    assert code_of(tmp_path / "a.jpg") == "corrupt"
    assert time.process_time() - began < 2


def test_the_pixel_hash_depends_on_pixels_and_size_only(tmp_path: Path) -> None:
    image = make_image()
    image.save(tmp_path / "a.png", compress_level=9)
    image.save(tmp_path / "b.tiff")
    first, second = (decode.pixel_hash(decode.decode_image(tmp_path / name)) for name in ("a.png", "b.tiff"))
    assert first == second
    flat = Image.new("RGB", (8, 2))
    assert decode.pixel_hash(flat) != decode.pixel_hash(flat.resize((4, 4)))
    image.putpixel((0, 0), (1, 2, 3))
    assert decode.pixel_hash(image) != first


def test_images_are_cropped_then_resized() -> None:
    image = make_image(60, 40)
    whole = decode.crop_and_resize(image, (10, 0, 50, 40), (16, 16))
    assert whole.tobytes() == image.crop((10, 0, 50, 40)).resize((16, 16), Image.Resampling.LANCZOS).tobytes()
    assert decode.crop_and_resize(image, None, None) is image
    with pytest.raises(DataError, match="does not lie inside"):
        decode.crop_and_resize(image, (0, 0, 61, 40), (16, 16))


def test_a_record_is_decoded_as_recorded_and_a_change_is_detected(tmp_path: Path) -> None:
    rgba = make_image().convert("RGBA")
    rgba.putalpha(100)
    rgba.save(tmp_path / "a.png")
    shown = decode.decode_image(tmp_path / "a.png", background=(0, 0, 0))
    record = Record("a.png", "0" * 64, decode.pixel_hash(shown), 48, 32, background="#000000")
    assert decode.read_record_image(tmp_path, record).tobytes() == shown.tobytes()
    make_image(seed=5).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="changed") as caught:
        decode.read_record_image(tmp_path, record)
    assert caught.value.code == "changed"


def natural(width: int, height: int) -> Image.Image:
    """An image with detail at every scale, like a photograph, and sensor noise."""
    rng = np.random.default_rng(3)
    total = np.zeros((height, width, 3))
    for level in range(2, 9):
        cells = rng.normal(0, 40 / level, (2**level, 2**level, 3)).astype(np.float32)
        bands = [
            Image.fromarray(cells[..., i]).resize((width, height), Image.Resampling.BICUBIC) for i in range(3)
        ]
        total += np.stack([np.asarray(band) for band in bands], -1)
    total += 128 + rng.normal(0, 4, total.shape)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_decoded_at_reduced_size_gives_almost_the_same_image(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    natural(1600, 1200).save(tmp_path / "a.jpg", quality=92, exif=exif)
    info = inspect(tmp_path / "a.jpg")
    record = Record("a.jpg", "0" * 64, info.content_hash, *info.size)
    box, size = (37, 21, info.size[0] - 91, info.size[1] - 13), (360, 380)
    scaled = decode.read_record_image_scaled(tmp_path, record, box, size)
    assert max(scaled.pixels.shape) == 800  # halved: 1600 is more than twice 1.4 times the needed size
    image = Image.fromarray(scaled.pixels)
    resized = image.resize(size, Image.Resampling.LANCZOS, box=scaled.crop)
    fast = np.asarray(resized).astype(float)
    whole = np.asarray(decode.crop_and_resize(decode.read_record_image(tmp_path, record), box, size)).astype(
        float
    )
    assert np.abs(fast - whole).mean() < 1.2
    assert 10 * np.log10(255**2 / np.square(fast - whole).mean()) > 42
    scaled = decode.read_record_image_scaled(tmp_path, record, box, (1024, 1066))
    assert (max(scaled.pixels.shape), scaled.crop) == (1600, box)  # too small to be halved


def test_colors_are_names_or_numbers() -> None:
    assert decode.parse_color("#102030") == (16, 32, 48)
    assert decode.color_name(decode.parse_color("white")) == "#ffffff"
    with pytest.raises(ConfigError, match="not a color"):
        decode.parse_color("blueish-ish")

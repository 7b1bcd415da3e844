"""Find out from the first bytes what a file is if it is not an image; the file name is never trusted."""

from __future__ import annotations

import re
from collections.abc import Collection

from lorakit.imaging import file_kinds, refused
from lorakit.imaging.file_kinds import REFETCH_REMEDY, FileProblem

SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"RIFF",  # WebP, when WEBP follows
    b"II*\x00",  # TIFF, little-endian
    b"MM\x00*",  # TIFF, big-endian
    b"II+\x00",  # BigTIFF
    b"MM\x00+",
    b"BM",
    b"qoif",
    b"\xff\x0a",  # JPEG XL codestream
    b"\x00\x00\x00\x0cJXL ",
    b"\x00\x00\x00\x0cjP  ",  # JPEG 2000
    b"\xff\x4f\xff\x51",  # JPEG 2000 codestream
)


_SUFFIXES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"II*\x00": ".tiff",
    b"MM\x00*": ".tiff",
    b"BM": ".bmp",
    b"qoif": ".qoi",
    b"\xff\x0a": ".jxl",
    b"\x00\x00\x00\x0cJXL ": ".jxl",
    b"\x00\x00\x00\x0cjP  ": ".jp2",
}


def is_image_header(head: bytes) -> bool:
    """Return True if the first 16 bytes are those of an image format, decodable here or not."""
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    if head[4:8] == b"ftyp":  # the same container holds videos; the brand tells them apart
        return head[8:11] in (b"avi", b"hei", b"hev", b"mif", b"msf")
    if head.startswith(b"BM"):
        return head[6:10] == bytes(4)  # two letters alone would also be text
    return head.startswith(SIGNATURES)


def image_suffix(data: bytes) -> str:
    """Return the usual extension of a file with this content; ".img" for an unknown format."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[4:8] == b"ftyp":
        return ".avif" if data[8:11] == b"avi" else ".heic"
    return next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), ".img")


def detect_non_image(data: bytes) -> FileProblem | None:
    """Return the problem of a file of a known kind that is not a readable image; None for other data."""
    head = data[:4096]
    if not head:
        return FileProblem("empty", "the file is empty", REFETCH_REMEDY)
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return FileProblem("lfs_pointer", "a git-lfs pointer, not the image", "run `git lfs pull`")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype")) and b"<svg" in text:
        return FileProblem("svg", "an SVG drawing, which cannot be used", "export it as PNG")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<!--")):
        return FileProblem("html_or_xml", "an HTML or XML page, not an image", REFETCH_REMEDY)
    if re.match(rb'[{\[]\s*["{\[\]}\d]', text):
        return FileProblem("json_file", "JSON text, not an image", REFETCH_REMEDY)
    return file_kinds.identify(data)


def explain_unreadable(data: bytes, formats: Collection[str], detail: str) -> FileProblem:
    """Return the reason why no decoder of `formats` accepted the bytes; `detail` is its error message."""
    if data.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")) and "JXL" not in formats:
        remedy = "pip install pillow-jxl-plugin, or convert it to PNG"
        return FileProblem("no_decoder", "a JPEG XL image, and no decoder is installed", remedy)
    if data[4:8] == b"ftyp":
        if data[8:11] == b"avi" and "AVIF" not in formats:
            remedy = "install a Pillow built with AVIF, or convert it to PNG"
            return FileProblem("no_decoder", "an AVIF image, and no decoder is installed", remedy)
        if data[8:11] in (b"hei", b"hev", b"mif", b"msf") and "HEIF" not in formats:
            remedy = "pip install pillow-heif, or convert it to JPEG"
            return FileProblem("no_decoder", "a HEIC image, and no decoder is installed", remedy)
    if is_image_header(data[:16]) or re.match(rb"P[1-7fFy]\s", data):
        return refused.explain_refused(data, detail)
    if problem := file_kinds.identify_by_guess(data):
        return problem
    message = f"not a supported image format; it starts with the bytes {data[:8].hex(' ')}"
    return FileProblem("unknown_format", message, "convert it to PNG, or move it out of the folder")

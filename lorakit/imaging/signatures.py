"""Say what a file is when it is not a picture, by its first bytes; the name's ending is never trusted."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple


class FileProblem(NamedTuple):
    """Why a file gives no picture: a stable code, a sentence, and what to do."""

    code: str
    message: str
    remedy: str | None = None


REFETCH_REMEDY = "fetch it again"
SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"RIFF",  # WebP, when WEBP follows
    b"II*\x00",  # TIFF, little-endian
    b"MM\x00*",  # TIFF, big-endian
    b"BM",
    b"qoif",
    b"\xff\x0a",  # JPEG XL codestream
    b"\x00\x00\x00\x0cJXL ",
    b"\x00\x00\x00\x0cjP  ",  # JPEG 2000
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
    """Whether the first 16 bytes are those of an image format, decodable here or not."""
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    if head[4:8] == b"ftyp":  # the same container holds films, told apart by the brand
        return head[8:11] in (b"avi", b"hei", b"hev", b"mif", b"msf")
    if head.startswith(b"BM"):
        return head[6:10] == bytes(4)  # two letters alone would also be text
    return head.startswith(SIGNATURES)


def image_suffix(data: bytes) -> str:
    """The usual ending of a file with this content; ".img" when it is none known here."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[4:8] == b"ftyp":
        return ".avif" if data[8:11] == b"avi" else ".heic"
    return next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), ".img")


def detect_non_image(data: bytes) -> FileProblem | None:
    """The usual impostors: an empty file, a git-lfs pointer, a drawing or web page saved as .jpg."""
    head = data[:4096]
    if not head:
        return FileProblem("empty", "the file is empty", REFETCH_REMEDY)
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return FileProblem("lfs_pointer", "a git-lfs pointer, not the image", "git lfs pull")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype")) and b"<svg" in text:
        return FileProblem("svg", "an SVG drawing, never rendered here", "export it as PNG")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<!--")):
        return FileProblem("markup", "an HTML or XML page, not an image", REFETCH_REMEDY)
    if re.match(rb'[{\[]\s*["{\[\]}\d]', text):
        return FileProblem("json", "JSON text, not an image", REFETCH_REMEDY)
    return None


def explain_unreadable(data: bytes, formats: Collection[str], detail: str) -> FileProblem:
    """Why no parser of `formats` took the bytes: a decoder is missing, the header is damaged, or else."""
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
    if is_image_header(data[:16]):
        return FileProblem(
            "corrupt", "a damaged image header" + (f": {detail}" if detail else ""), REFETCH_REMEDY
        )
    return FileProblem("unknown_format", "not an image format known here", "convert it to PNG")

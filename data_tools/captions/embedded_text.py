"""Descriptions inside image files: EXIF, XMP, IPTC, comments, and the prompts of image generators."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image, ImageFile, IptcImagePlugin

from data_tools.captions.generation_settings import split_settings
from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json

EMBEDDED_TEXT = "embedded_text"
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF")  # a JPEG may turn out to be an MPO
_EXIF = {
    ExifTags.Base.ImageDescription: "EXIF ImageDescription",
    ExifTags.Base.XPTitle: "EXIF XPTitle",
    ExifTags.Base.XPComment: "EXIF XPComment",
    ExifTags.Base.XPKeywords: "EXIF XPKeywords",
    ExifTags.Base.XPSubject: "EXIF XPSubject",
}
_IPTC = {(2, 5): "IPTC title", (2, 25): "IPTC keywords", (2, 105): "IPTC headline", (2, 120): "IPTC caption"}
_PNG_KEYS = ("parameters", "description", "comment", "title", "caption", "prompt", "subject", "keywords")
_XMP = re.compile(
    rb"<(dc:description|dc:title|dc:subject|photoshop:Headline|lr:hierarchicalSubject)\b[^>]*>(.{1,20000}?)</\1>",
    re.DOTALL,
)
_XML_TAG = re.compile(r"<[^>]*>")
# Texts that cameras and programs write by themselves.
_BY_DEFAULT = re.compile(
    r"(?:olympus|sony|minolta|konica|kodak|samsung|nikon|canon|fuji\w*|panasonic|pentax|casio|dcim|dji"
    r"|digital camera)[\w .\\/:-]*$|screen ?shot|default|untitled|none$|created (?:with|by|using)|edited by"
    r"|edited with|adobe|copyright|©|\(c\)|lead tech|file (?:source|written)|intel\(r\)|handmade"
    r"|optimi[sz]ed|compressed|resized|creat(?:ed|or):|processed|xv version|jpeg|gd-jpeg|exif|software|gimp"
    r"|imagemagick|paint\.net|ffmpeg|lavc|https?://|charset|camera phone",
    re.IGNORECASE,
)
_KEYWORDS = re.compile("keywords|subject|title|headline", re.IGNORECASE)
_MIN_LETTERS = 3
_MAX_QUOTE = 60


def embedded_text_notes(data: bytes) -> list[str]:
    """Return a note with the fields that hold a description of the image, and how each starts; or nothing."""
    fields = _described_fields(data)
    quoted = "; ".join(f"{name}={' '.join(text.split())[:_MAX_QUOTE]!r}" for name, text in fields.items())
    return [f"{EMBEDDED_TEXT}: {quoted}"] if fields else []


def embedded_caption(data: bytes) -> str:
    """Return the description inside an image file, else its keywords; "" without any."""
    fields = _described_fields(data)
    names = sorted(fields, key=lambda name: bool(_KEYWORDS.search(name)))  # descriptions first
    return split_settings(fields[names[0]])[0] if names else ""


def _described_fields(data: bytes) -> dict[str, str]:
    """Return the texts by field, without those that cameras and programs write by themselves."""
    fields: dict[str, str] = {}
    for name, text in _fields(data):
        line = " ".join(text.split())
        if sum(letter.isalpha() for letter in line) >= _MIN_LETTERS and not _BY_DEFAULT.match(line):
            fields.setdefault(name, text)
    return fields


def _fields(data: bytes) -> Iterator[tuple[str, str]]:
    try:
        formats = [name for name in _FORMATS if name in Image.OPEN]  # registered when the image was decoded
        with Image.open(io.BytesIO(data), formats=formats) as image:
            yield from _fields_of_image(image)
    except Exception:
        return


def _fields_of_image(image: ImageFile.ImageFile) -> Iterator[tuple[str, str]]:
    for key, value in image.info.items():
        if isinstance(value, str) and str(key).casefold() in _PNG_KEYS:
            yield f"{image.format} {key}", value if not _is_json(value) else "a workflow"
        elif key == "comment" and isinstance(value, bytes):
            yield f"{image.format} comment", value.decode("utf-8", "replace")
    exif = image.getexif()
    for tag, name in _EXIF.items():
        if text := _exif_text(exif.get(tag)):
            yield name, text
    if text := _exif_text(exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)):
        yield "EXIF UserComment", text
    if image.info.get("photoshop"):
        yield from _iptc(image)
    xmp = image.info.get("xmp", b"")
    for match in _XMP.finditer(xmp.encode() if isinstance(xmp, str) else xmp):
        text = _XML_TAG.sub(" ", match[2].decode("utf-8", "replace"))
        yield f"XMP {match[1].decode().partition(':')[2]}", text


def _exif_text(value: Any) -> str:
    """Return the text of an EXIF value: ASCII, UTF-16 of Windows, or a comment with its encoding in front."""
    if isinstance(value, tuple) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
        value = bytes(value)
    if isinstance(value, str):
        return value.strip("\0 ")
    if not isinstance(value, bytes):
        return ""
    if value.startswith(b"UNICODE\0"):
        body = value[8:]
        encoding = "utf-16-be" if body[:1] == b"\0" else "utf-16-le"
        return body.decode(encoding, "replace").strip("\0 ")
    if value[:8] in (b"ASCII\0\0\0", b"\0" * 8, b"JIS\0\0\0\0\0"):
        return value[8:].decode("utf-8", "replace").strip("\0 ")
    is_wide = len(value) > 1 and value[1::2].count(0) > len(value) // 4
    return value.decode("utf-16-le" if is_wide else "utf-8", "replace").strip("\0 ")


def _iptc(image: ImageFile.ImageFile) -> Iterator[tuple[str, str]]:
    for key, value in (IptcImagePlugin.getiptcinfo(image) or {}).items():
        values = value if isinstance(value, list) else [value]
        texts = [one.decode("utf-8", "replace") for one in values if isinstance(one, bytes)]
        if key in _IPTC and texts:
            yield _IPTC[key], ", ".join(texts)


def _is_json(text: str) -> bool:
    if text[:1] not in "{[":
        return False
    try:
        parse_json(text, "")
    except DataError:
        return False
    return True

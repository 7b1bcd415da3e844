"""Inspect an image: the record of its generation, the texts of other programs, its content credentials."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lorakit.core import checksums, input_files
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.strict_json import parse_json
from lorakit.imaging import content_credentials
from lorakit.imaging.image_texts import read_image_texts
from lorakit.imaging.provenance import DIGITAL_SOURCE_TYPE, INFOTEXT_KEY, RECORD_KEY

SUFFIXES = tuple(content_credentials.MIME_TYPES)
_MAX_BYTES = 1 << 30
_MAX_TEXT_CHARS = 2000


def inspect_image(path: Path) -> dict[str, Any]:
    """Return what an image file says about itself, as plain values.

    `record` is lorakit's own, `texts` are those of any program, `content_credentials` the validated manifest,
    None without one. Raises DataError for a file that is not an image.
    """
    data = input_files.read_regular(path, _MAX_BYTES)
    width, height, format_name = _size(data, str(path))
    texts = read_image_texts(path)
    record = _record(texts)
    return {
        "path": str(path),
        "format": format_name,
        "width": width,
        "height": height,
        "sha256": checksums.sha256_bytes(data),
        "says_ai_generated": DIGITAL_SOURCE_TYPE.encode() in data,
        "record": record,
        "texts": {
            key: text[:_MAX_TEXT_CHARS] for key, text in sorted(texts.items()) if _is_shown(key, record)
        },
        "content_credentials": _credentials(data, path),
    }


def require_unchanged(properties: dict[str, Any]) -> None:
    """Raise DataError if the manifest of an inspected image does not validate."""
    credentials = properties["content_credentials"] or {}
    if credentials.get("state") == "invalid":
        raise DataError(
            "the image was changed after it was signed, or its content credentials are damaged: "
            + "; ".join(credentials["problems"]),
            where=properties["path"],
            remedy="do not rely on what it says about its origin",
        )


def _size(data: bytes, where: str) -> tuple[int, int, str]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.width, image.height, str(image.format)
    except Exception as error:  # a decoder may raise anything
        raise DataError(
            "this file is not an image that can be read", where=where, remedy="give a PNG, JPEG or WebP file"
        ) from error


def _record(texts: dict[str, str]) -> dict[str, Any] | None:
    for key in (RECORD_KEY, "description"):  # of PNG, of EXIF
        try:
            value = parse_json(texts.get(key, ""), key)
        except DataError:
            continue
        if isinstance(value, dict) and "base_hash" in value:
            return value
    return None


def _is_shown(key: str, record: dict[str, Any] | None) -> bool:
    """Return True for a text that the record does not repeat."""
    return key == INFOTEXT_KEY or not (
        key.startswith(("xml:", "xmp")) or (record and key in (RECORD_KEY, "description"))
    )


def _credentials(data: bytes, path: Path) -> dict[str, Any] | None:
    if not content_credentials.has_manifest(data):
        return None
    mime_type = content_credentials.MIME_TYPES.get(path.suffix.lower(), "image/png")
    try:
        credentials = content_credentials.read_credentials(data, mime_type)
    except ConfigError as error:
        return {"state": "not checked", "problems": [f"{error.message}: {error.remedy}"]}
    except DataError as error:
        return {"state": "invalid", "problems": [error.message]}
    return credentials.to_json() if credentials else None

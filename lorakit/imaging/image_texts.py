"""Texts that image files carry: chunks of PNG, EXIF of JPEG, WebP and AVIF, comments of GIF."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_EXIF_NAMES = {
    0x010E: "description",
    0x010F: "make",
    0x0110: "model",
    0x0131: "software",
    0x9286: "usercomment",
}
_EXIF_FOLDER = 0x8769
_XP_COMMENT = 0x9C9C
_LABELED = re.compile(r"(prompt|workflow)\s*:\s*(?=[{\[])", re.IGNORECASE)  # how ComfyUI fills EXIF
MAX_TEXT = 16 << 20  # characters; the graphs of ComfyUI have up to some millions


def read_image_texts(path: Path) -> dict[str, str]:
    """Return the texts of an image file by name in lower case; none for a damaged file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            pairs = list(image.info.items())
            if image.format == "PNG":  # chunks may come behind the pixels
                pairs += list(getattr(image, "text", {}).items())
            pairs += _exif_pairs(image)
    except Exception:  # a decoder may raise anything; the image itself is checked when it is scored
        return {}
    texts: dict[str, str] = {}
    for name, value in pairs:
        text = _decoded(value) if isinstance(value, bytes) and name != "exif" else value
        if isinstance(text, str) and 0 < len(text) <= MAX_TEXT:
            label = _LABELED.match(text) if name in ("make", "model", "description") else None
            key, content = (label[1], text[label.end() :]) if label else (str(name), text)
            texts.setdefault(key.lower(), content)
    return texts


def _exif_pairs(image: Any) -> list[tuple[str, Any]]:
    exif = image.getexif()
    pairs = [(_EXIF_NAMES[tag], value) for tag, value in exif.items() if tag in _EXIF_NAMES]
    pairs += [
        (_EXIF_NAMES[tag], value) for tag, value in exif.get_ifd(_EXIF_FOLDER).items() if tag in _EXIF_NAMES
    ]
    if comment := exif.get(_XP_COMMENT):
        pairs.append(("usercomment", bytes(comment).decode("utf-16-le", "ignore").rstrip("\0")))
    return pairs


def _decoded(data: bytes) -> str:
    """Return the text of a comment in EXIF, which begins with the name of its encoding in eight bytes."""
    encoding, body = data[:8].rstrip(b"\0 ").upper(), data[8:]
    if encoding == b"UNICODE":
        # the byte order is not written: letters of most texts have their zero in the first byte
        big = body[0::2].count(0) >= body[1::2].count(0)
        return body.decode("utf-16-be" if big else "utf-16-le", "ignore").strip("\0\ufeff")
    body = body if encoding in (b"ASCII", b"") and len(data) > 8 else data
    return body.decode("utf-8", "ignore").strip("\0")

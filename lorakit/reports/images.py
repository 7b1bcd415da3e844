"""Pictures inside a page, and many pictures as one contact sheet."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.reports.html import Html, tag

if TYPE_CHECKING:
    from PIL import Image, ImageFont

BACKGROUND_COLOR, TEXT_COLOR, LABEL_COLOR = (
    (250, 250, 249),
    (29, 33, 38),
    (98, 106, 117),
)  # the contact sheet's colours


def embed_image(
    picture: Image.Image,
    *,
    alt: str,
    width: int | None = None,
    format: str = "JPEG",
    enlarged: int | None = None,
) -> Html:
    """A picture as a data URI, shown `width` CSS pixels wide and stored at most twice as large.

    With `enlarged` it is stored up to that wide, and a click shows it large: by a check box, for the page's
    policy allows no scripts.
    """
    from PIL import Image

    jpeg = format.upper() == "JPEG"
    flat = _flatten(picture) if jpeg else picture
    most = enlarged or (2 * width if width else flat.width)
    if flat.width > most:
        smaller = (most, max(1, round(flat.height * most / flat.width)))
        flat = flat.resize(smaller, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    flat.save(buffer, format=format, **({"quality": 88} if jpeg else {}))
    shown = width or flat.width
    drawn = tag(
        "img",
        src=f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}",
        width=shown,
        height=max(1, round(shown * flat.height / flat.width)),
        alt=alt,
        loading="lazy",
    )
    if not enlarged:
        return drawn
    return tag("label", tag("input", type="checkbox", aria_label=f"enlarge {alt}"), drawn, class_="zoom")


def embed_image_file(path: str | Path, *, alt: str, width: int | None = None, format: str = "JPEG") -> Html:
    """A picture file as `image`, read by the one decode function (upright, sRGB)."""
    from lorakit.imaging.decode import decode_image

    return embed_image(decode_image(Path(path)), alt=alt, width=width, format=format)


def _flatten(picture: Image.Image) -> Image.Image:
    """RGB without transparency, on white."""
    from PIL import Image

    if picture.mode == "RGB":
        return picture
    upper = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", upper.size, "white"), upper).convert("RGB")


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, lines: int) -> str:
    """Break text into at most `lines` lines of `width` pixels; what does not fit ends in an ellipsis."""
    wrapped = [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".strip()
        if wrapped[-1] and font.getlength(longer) > width:
            wrapped.append(word)
        else:
            wrapped[-1] = longer
    kept = wrapped[:lines]
    for i, line in enumerate(kept):
        mark = "…" if len(wrapped) > lines and i == lines - 1 else ""
        while line and font.getlength(line + mark) > width:
            line, mark = line[:-1], "…"
        kept[i] = line + mark
    return "\n".join(kept)


def contact_sheet(
    cells: Sequence[Sequence[Image.Image | None]],
    *,
    column_heads: Sequence[str],
    row_heads: Sequence[str],
    cell: int = 160,
) -> Image.Image:
    """One RGB picture of many, each fitted into `cell` x `cell` pixels, with drawn heads; None is a gap."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    text_size = max(11, cell // 12)
    font = ImageFont.load_default(text_size)
    gap = max(4, cell // 24)
    pitch = cell + gap
    head = round(2.8 * text_size) + gap if any(column_heads) else 0
    side = max(cell, 120) if any(row_heads) else 0
    size = (side + len(column_heads) * pitch + gap, head + len(row_heads) * pitch + gap)
    sheet = Image.new("RGB", size, BACKGROUND_COLOR)
    draw = ImageDraw.Draw(sheet)
    for x, text in enumerate(column_heads):
        draw.text((side + gap + x * pitch, gap), _wrap(text, font, cell, 2), fill=LABEL_COLOR, font=font)
    for y, (text, row) in enumerate(zip(row_heads, cells, strict=True)):
        top = head + gap + y * pitch
        label = _wrap(text, font, side - gap, max(1, cell // round(1.35 * text_size)))
        draw.text((gap, top), label, fill=TEXT_COLOR, font=font)
        for x, picture in enumerate(row):
            if picture is None:
                continue
            fitted = ImageOps.contain(_flatten(picture), (cell, cell))
            left = side + gap + x * pitch
            sheet.paste(fitted, (left + (cell - fitted.width) // 2, top + (cell - fitted.height) // 2))
    return sheet

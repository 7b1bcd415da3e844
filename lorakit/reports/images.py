"""Images inside a page, and many images as one contact sheet."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.reports.html import Html, tag

if TYPE_CHECKING:
    from PIL import Image, ImageFont

# Colours of a contact sheet.
BACKGROUND_COLOR, TEXT_COLOR, LABEL_COLOR = (250, 250, 249), (29, 33, 38), (98, 106, 117)


def embed_image(
    image: Image.Image,
    *,
    alt: str,
    width: int | None = None,
    format: str = "JPEG",
    zoom_width: int | None = None,
) -> Html:
    """Return an image as a data URI, shown `width` CSS pixels wide and stored at most twice as large.

    With `zoom_width` it is stored up to that width, and a click enlarges it: with a check box, because the
    page's policy allows no scripts.
    """
    from PIL import Image

    jpeg = format.upper() == "JPEG"
    flat = _flatten(image) if jpeg else image
    max_width = zoom_width or (2 * width if width else flat.width)
    if flat.width > max_width:
        size = (max_width, max(1, round(flat.height * max_width / flat.width)))
        flat = flat.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    flat.save(buffer, format=format, **({"quality": 88} if jpeg else {}))
    shown_width = width or flat.width
    element = tag(
        "img",
        src=f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}",
        width=shown_width,
        height=max(1, round(shown_width * flat.height / flat.width)),
        alt=alt,
        loading="lazy",
    )
    if not zoom_width:
        return element
    return tag("label", tag("input", type="checkbox", aria_label=f"enlarge {alt}"), element, class_="zoom")


def embed_image_file(path: str | Path, *, alt: str, width: int | None = None, format: str = "JPEG") -> Html:
    """Return an image file like `embed_image`, decoded upright and in sRGB."""
    from lorakit.imaging.decode import decode_image

    return embed_image(decode_image(Path(path)), alt=alt, width=width, format=format)


def _flatten(image: Image.Image) -> Image.Image:
    """Return the image as RGB, with white under transparency."""
    from PIL import Image

    if image.mode == "RGB":
        return image
    upper = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", upper.size, "white"), upper).convert("RGB")


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, lines: int) -> str:
    """Break text into at most `lines` lines of `width` pixels; text that does not fit ends in an ellipsis."""
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
    """Return one RGB image of many, each fitted into `cell` x `cell` pixels, with heads; None is a gap."""
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
        for x, image in enumerate(row):
            if image is None:
                continue
            fitted = ImageOps.contain(_flatten(image), (cell, cell))
            left = side + gap + x * pitch
            sheet.paste(fitted, (left + (cell - fitted.width) // 2, top + (cell - fitted.height) // 2))
    return sheet

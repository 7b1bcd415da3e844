"""Images inside a page, and many images as one contact sheet."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorakit.reports.rendering import Block

if TYPE_CHECKING:
    from PIL import Image, ImageFont

LOSSLESS_SIDE = 208  # pixels: images up to this size are embedded as PNG
# Colors of a contact sheet.
BACKGROUND_COLOR, TEXT_COLOR, LABEL_COLOR = (250, 250, 249), (29, 33, 38), (98, 106, 117)


@dataclass(frozen=True)
class EmbeddedImage(Block):
    """An image as a data URI, `width` x `height` CSS pixels; `zoom` if a click enlarges it."""

    macro: ClassVar[str] = "image"
    source: str
    width: int
    height: int
    alt: str
    zoom: bool = False


def data_uri(image: Image.Image, format: str = "JPEG", quality: int = 84) -> str:
    """Return an image as a data URI: JPEG, PNG or another format of Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, format=format, **({"quality": quality} if format == "JPEG" else {}))
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def embed_image(
    image: Image.Image,
    *,
    alt: str,
    width: int | None = None,
    format: str | None = None,
    zoom_width: int | None = None,
) -> EmbeddedImage:
    """Return an image that is shown `width` CSS pixels wide and stored at most twice as large.

    Without a format a small image is a PNG, because it would show the blocks of a JPEG. With `zoom_width` it
    is stored up to that width, and a click enlarges it: with a check box, because the page's policy allows no
    scripts.
    """
    from PIL import Image

    flat = _flatten(image)
    max_width = zoom_width or (2 * width if width else flat.width)
    if flat.width > max_width:
        size = (max_width, max(1, round(flat.height * max_width / flat.width)))
        flat = flat.resize(size, Image.Resampling.LANCZOS)
    shown_width = width or flat.width
    height = max(1, round(shown_width * flat.height / flat.width))
    kind = format or ("PNG" if max(flat.size) <= LOSSLESS_SIDE else "JPEG")
    return EmbeddedImage(data_uri(flat, kind), shown_width, height, alt, zoom_width is not None)


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

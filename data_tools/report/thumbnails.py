"""Thumbnails of the images, with the crop and the mask drawn over them."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lorakit.core.errors import DataError
from lorakit.imaging import crops, decode, masks
from lorakit.manifest import Record
from lorakit.reports import Html, embed_image, tag

CARD_SIDE = 252  # long side of an image on a card, in CSS pixels
FINDING_SIDE = 64  # beside a finding
MIN_CROP_FRAME = 0.02  # a smaller crop gets no frame, which would be wider than the part cut off
_PIXEL_RATIO = 1.5  # stored pixels per CSS pixel
_HIGH_RES_LIMIT = 120  # images; with more, one stored pixel per CSS pixel keeps the page small
_MASK_COLOR = (196, 64, 160)  # over the part outside the mask


class Thumbnails:
    """The thumbnails of one report; recently decoded images are cached."""

    def __init__(self, root: Path, records: Sequence[Record]) -> None:
        self.root = root
        self.records = {record.file: record for record in records}
        self.anchors = {record.file: f"image-{number}" for number, record in enumerate(records, 1)}
        self._stored = round(CARD_SIDE * (_PIXEL_RATIO if len(records) <= _HIGH_RES_LIMIT else 1))
        self._image = functools.lru_cache(maxsize=128)(self._decoded)

    def thumbnail(self, file: str, side: int = CARD_SIDE, *, overlay: bool = True) -> Html:
        """Return a thumbnail with the area outside crop and mask shaded, or a text if there is none."""
        record = self.records.get(file)
        if record is None or not record.width:
            return tag("div", "no image", class_="thumbnail none", style=f"width:{side}px")
        try:
            image = self._image(file)
        except DataError as error:
            return tag("div", error.message, class_="thumbnail none", style=f"width:{side}px")
        width = max(1, round(side * record.width / max(record.size)))
        parts = [embed_image(image, alt=file, width=width)]
        if overlay:
            parts += [self._mask(record, image.size), _crop(record)]
        return tag("div", *parts, class_="thumbnail", style=f"width:{width}px")

    def link(self, file: str) -> Html:
        """Return the file's name, linked to its card if there is one."""
        anchor = self.anchors.get(file)
        return tag("a", file, href=f"#{anchor}") if anchor else tag("span", file)

    def _decoded(self, file: str) -> Image.Image:
        return decode.record_thumbnail(self.root, self.records[file], self._stored)

    def _mask(self, record: Record, size: tuple[int, int]) -> Html:
        """Return a tinted layer over the area outside the mask."""
        try:
            mask = masks.read_record_mask(self.root, record)
        except DataError:
            mask = None
        if mask is None:
            return Html("")
        small = mask.resize(size, Image.Resampling.BILINEAR)
        tint = Image.new("RGBA", size, (*_MASK_COLOR, 0))
        tint.putalpha(small.point([round((255 - level) * 0.6) for level in range(256)]))
        buffer = io.BytesIO()
        tint.quantize(32, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG")
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
        return tag("img", src=source, alt="mask", class_="mask")


def _crop(record: Record) -> Html:
    """Return a frame around the crop; nothing if it is the whole image."""
    left, top, right, bottom = crops.training_crop(record)
    if not record.bucket or (left, top, right, bottom) == (0, 0, *record.size):
        return Html("")
    place = {"left": left / record.width, "top": top / record.height}
    place |= {"width": (right - left) / record.width, "height": (bottom - top) / record.height}
    style = ";".join(f"{name}:{100 * share:.2f}%" for name, share in place.items())
    outside = 1 - place["width"] * place["height"]
    kind = "crop" if outside >= MIN_CROP_FRAME else "crop slight"
    return tag("span", class_=kind, style=style, title="the crop for training")

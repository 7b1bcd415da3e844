"""Thumbnails of the dataset's images, with the kept crop and the mask laid over them."""

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

CARD_SIDE = 252  # long side of a card's picture, in CSS pixels
FINDING_SIDE = 64  # of those beside a finding
MIN_CROP_FRAME = 0.02  # a crop that cuts off less gets no frame, which would be wider than what it shows
_PIXEL_RATIO = 1.5  # stored pixels per CSS pixel
_HIGH_RES_LIMIT = 120  # pictures, from which on they are stored without reserve to keep the page small
_MASK_COLOR = (196, 64, 160)  # over what a mask leaves out


class Thumbnails:
    """The pictures of one report; each file is decoded once where memory allows."""

    def __init__(self, root: Path, records: Sequence[Record]) -> None:
        self.root = root
        self.records = {record.file: record for record in records}
        self.anchors = {record.file: f"image-{number}" for number, record in enumerate(records, 1)}
        self._stored = round(CARD_SIDE * (_PIXEL_RATIO if len(records) <= _HIGH_RES_LIMIT else 1))
        self._picture = functools.lru_cache(maxsize=128)(self._decoded)

    def shot(self, file: str, side: int = CARD_SIDE, *, overlay: bool = True) -> Html:
        """A picture with what the crop and the mask leave out shaded; the reason where there is none."""
        record = self.records.get(file)
        if record is None or not record.width:
            return tag("div", "no picture", class_="look none", style=f"width:{side}px")
        try:
            picture = self._picture(file)
        except DataError as error:
            return tag("div", error.message, class_="look none", style=f"width:{side}px")
        width = max(1, round(side * record.width / max(record.size)))
        parts = [embed_image(picture, alt=file, width=width)]
        if overlay:
            parts += [self._mask(record, picture.size), _crop(record)]
        return tag("div", *parts, class_="look", style=f"width:{width}px")

    def link(self, file: str) -> Html:
        """The file's name, leading to its card when there is one."""
        anchor = self.anchors.get(file)
        return tag("a", file, href=f"#{anchor}") if anchor else tag("span", file)

    def _decoded(self, file: str) -> Image.Image:
        return decode.record_thumbnail(self.root, self.records[file], self._stored)

    def _mask(self, record: Record, size: tuple[int, int]) -> Html:
        """What the mask leaves out, tinted."""
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
    """A frame around what is kept; nothing when that is the whole picture."""
    left, top, right, bottom = crops.training_crop(record)
    if not record.bucket or (left, top, right, bottom) == (0, 0, *record.size):
        return Html("")
    place = {"left": left / record.width, "top": top / record.height}
    place |= {"width": (right - left) / record.width, "height": (bottom - top) / record.height}
    style = ";".join(f"{name}:{100 * share:.2f}%" for name, share in place.items())
    outside = 1 - place["width"] * place["height"]
    kind = "crop" if outside >= MIN_CROP_FRAME else "crop slight"
    return tag("span", class_=kind, style=style, title="what training sees")

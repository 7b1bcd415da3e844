"""Thumbnails of the images, with the crop and the mask drawn over them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorakit.core.errors import DataError
from lorakit.imaging import crops, decode, masks
from lorakit.manifest import Record
from lorakit.reports import EmbeddedImage, data_uri, embed_image

CARD_SIDE = 252  # long side of an image on a card, in CSS pixels
FINDING_SIDE = 64  # beside a finding
MIN_CROP_FRAME = 0.02  # a smaller crop gets no frame, which would be wider than the part cut off
_PIXEL_RATIO = 1.5  # stored pixels per CSS pixel
_HIGH_RES_LIMIT = 120  # images; with more, one stored pixel per CSS pixel keeps the page small
_MASK_COLOR = (196, 64, 160)  # over the part outside the mask


@dataclass(frozen=True)
class CropFrame:
    """The crop in percent of the image; `slight` if too little is cropped for a frame."""

    left: float
    top: float
    width: float
    height: float
    slight: bool


@dataclass(frozen=True)
class Thumbnail:
    """An image `width` CSS pixels wide with its crop and mask, or the reason why there is none."""

    width: int
    image: EmbeddedImage | None = None
    problem: str = ""
    crop: CropFrame | None = None
    mask: str | None = None
    """A tinted layer over the area outside the mask, as a data URI."""


@dataclass(frozen=True)
class FileName:
    """A file's name and the anchor of its card; files of other folders have none."""

    name: str
    anchor: str | None


class Thumbnails:
    """The thumbnails of one report; recently decoded images are cached."""

    def __init__(self, root: Path, records: Sequence[Record]) -> None:
        self.root = root
        self.records = {record.file: record for record in records}
        self.anchors = {record.file: f"image-{number}" for number, record in enumerate(records, 1)}
        self._stored = round(CARD_SIDE * (_PIXEL_RATIO if len(records) <= _HIGH_RES_LIMIT else 1))
        self._image = functools.lru_cache(maxsize=128)(self._decoded)

    def thumbnail(self, file: str, side: int = CARD_SIDE, *, overlay: bool = True) -> Thumbnail:
        """Return a thumbnail with the area outside crop and mask shaded, or a text if there is none."""
        record = self.records.get(file)
        if record is None or not record.width:
            return Thumbnail(side, problem="no image")
        try:
            image = self._image(file)
        except DataError as error:
            return Thumbnail(side, problem=error.message)
        width = max(1, round(side * record.width / max(record.size)))
        embedded = embed_image(image, alt=file, width=width)
        if not overlay:
            return Thumbnail(width, embedded)
        return Thumbnail(width, embedded, crop=_crop(record), mask=self._mask(record, image.size))

    def file_name(self, file: str) -> FileName:
        """Return the file's name with the anchor of its card, if there is one."""
        return FileName(file, self.anchors.get(file))

    def _decoded(self, file: str) -> Image.Image:
        return decode.record_thumbnail(self.root, self.records[file], self._stored)

    def _mask(self, record: Record, size: tuple[int, int]) -> str | None:
        """Return a tinted layer over the area outside the mask."""
        try:
            mask = masks.read_record_mask(self.root, record)
        except DataError:
            return None
        if mask is None:
            return None
        small = mask.resize(size, Image.Resampling.BILINEAR)
        tint = Image.new("RGBA", size, (*_MASK_COLOR, 0))
        tint.putalpha(small.point([round((255 - level) * 0.6) for level in range(256)]))
        return data_uri(tint.quantize(32, method=Image.Quantize.FASTOCTREE), "PNG")


def _crop(record: Record) -> CropFrame | None:
    """Return a frame around the crop; None if it is the whole image."""
    left, top, right, bottom = crops.training_crop(record)
    if not record.bucket or (left, top, right, bottom) == (0, 0, *record.size):
        return None
    width, height = (right - left) / record.width, (bottom - top) / record.height
    return CropFrame(
        left=round(100 * left / record.width, 2),
        top=round(100 * top / record.height, 2),
        width=round(100 * width, 2),
        height=round(100 * height, 2),
        slight=1 - width * height < MIN_CROP_FRAME,
    )

"""Files of one row of a table, or one sample of a webdataset: image, captions, mask, conditioning images.

Their names are those that the data tools recognize: `a.jpg` with `a.txt` or `a.json`, `a-masklabel.png`,
`a.source.png`, `a.control.png`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from PIL import Image, ImageChops

from data_tools.captions import columns
from data_tools.conditioning.masks import SIDECAR_SUFFIX
from data_tools.formats import DatasetFile
from data_tools.formats.column_roles import ColumnRoles, is_image_cell
from data_tools.formats.left_out import LeftOut
from data_tools.listing import IMAGE_SUFFIXES
from lorakit.core.errors import DataError
from lorakit.imaging import decode, signatures
from lorakit.imaging.decode import ImageError

ReadFile = Callable[[str], bytes | None]
"""Returns the bytes of a path that a row names, None if it is not a file of the source."""
_MASK_PIXELS = 64  # the side at which a mask is compared with its gray version
_MAX_COLOR = 8


class _CellImage(NamedTuple):
    data: bytes
    name: str  # of the file, "" if the table does not say it

    @property
    def suffix(self) -> str:
        suffix = PurePosixPath(self.name).suffix
        return suffix if suffix.lower() in IMAGE_SUFFIXES else signatures.image_suffix(self.data)


def row_files(
    stem: str,
    row: Mapping[str, Any],
    roles: ColumnRoles,
    where: str,
    read_file: ReadFile,
    left_out: LeftOut,
    *,
    with_name: bool = True,
) -> list[DatasetFile]:
    """Return the files of a row, whose names start with `stem`; with `with_name`, its own name follows.

    A row without an image, and a cell that cannot be used, are added to `left_out`.
    """
    images = list(_cell_images(row.get(roles.image), read_file))
    if not images:
        left_out.add("row", f"no image in {roles.image}", where)
        return []
    files: list[DatasetFile] = []
    for number, image in enumerate(images):
        own_name = PurePosixPath(image.name).stem if with_name else ""
        base = "-".join(filter(None, [stem, own_name, str(number) if len(images) > 1 else ""]))
        files.append(DatasetFile(f"{base}{image.suffix}", image.data))
        files += _caption_files(base, row, roles, where, left_out)
        files += _mask_files(base, row, roles, where, read_file, left_out)
        for image_type, names in (("source", roles.sources), ("control", roles.controls)):
            cells = [cell for name in names for cell in _cell_images(row.get(name), read_file)]
            if names and not cells:
                left_out.add(image_type, f"none in {', '.join(names)}", where)
            for place, cell in enumerate(cells, 1):
                label = f"{image_type}{place}" if len(cells) > 1 else image_type
                files.append(DatasetFile(f"{base}.{label}{cell.suffix}", cell.data))
    return files


def _cell_images(value: Any, read_file: ReadFile) -> Iterator[_CellImage]:
    """Yield the images of a cell: bytes, what `datasets` stores, a path, or a list of them."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _cell_images(item, read_file)
        return
    cell: Any = value
    if isinstance(value, bytes | str):
        cell = {"bytes" if isinstance(value, bytes) else "path": value}
    if not is_image_cell(cell):
        return
    name = str(cell.get("path") or "").replace("\\", "/")
    data = cell.get("bytes")
    if data is None and name:
        data = read_file(name)
    if isinstance(data, bytes):
        yield _CellImage(data, PurePosixPath(name).name)


def _mask_files(
    base: str, row: Mapping[str, Any], roles: ColumnRoles, where: str, read_file: ReadFile, left_out: LeftOut
) -> list[DatasetFile]:
    if roles.mask is None or row.get(roles.mask) is None:
        return []
    masks = list(_cell_images(row[roles.mask], read_file))
    if len(masks) != 1:
        left_out.add("mask", f"{roles.mask} has {len(masks)} images instead of one", where)
        return []
    if not _is_gray(masks[0].data):
        left_out.add("mask", f"{roles.mask} is an image in color or damaged, not a mask", where)
        return []
    return [DatasetFile(f"{base}{SIDECAR_SUFFIX}{masks[0].suffix}", masks[0].data)]


def _is_gray(data: bytes) -> bool:
    """Return True for an image without colors; False for one that cannot be read."""
    try:
        image = decode.decode_bytes(data, where="mask", background=(0, 0, 0)).image
    except ImageError:
        return False
    red, green, blue = image.resize((_MASK_PIXELS, _MASK_PIXELS), Image.Resampling.NEAREST).split()
    differences = (ImageChops.difference(red, green), ImageChops.difference(red, blue))
    return all(int(one.getextrema()[1]) <= _MAX_COLOR for one in differences)  # type: ignore[arg-type]


def _caption_files(
    base: str, row: Mapping[str, Any], roles: ColumnRoles, where: str, left_out: LeftOut
) -> list[DatasetFile]:
    texts: list[str] = []
    for name in roles.captions:
        try:
            texts += columns.caption_texts(row, where, [name]) or []
        except DataError as error:
            left_out.add("caption", error.message, where)
    texts = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if roles.captions and not texts:
        left_out.add("caption", f"no words in {', '.join(roles.captions)}", where)
    return caption_files(base, texts, _tags(row, roles, where, left_out))


def _tags(row: Mapping[str, Any], roles: ColumnRoles, where: str, left_out: LeftOut) -> list[str]:
    if roles.tags is None:
        return []
    try:
        texts = columns.text_list(row.get(roles.tags), roles.tags, where)
    except DataError as error:
        left_out.add("row's tags", error.message, where)
        return []
    return [tag.strip() for text in texts for tag in text.split(",") if tag.strip()]


def caption_files(base: str, texts: Sequence[str], tags: Sequence[str] = ()) -> list[DatasetFile]:
    """Return `a.txt` with one caption, `a.json` with several or with tags, nothing without words."""
    if len(texts) == 1 and not tags:
        return [DatasetFile(f"{base}.txt", texts[0].encode("utf-8"))]
    if not texts and not tags:
        return []
    value = ({"captions": list(texts)} if texts else {}) | ({"tags": list(tags)} if tags else {})
    content = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    return [DatasetFile(f"{base}.json", content.encode("utf-8"))]

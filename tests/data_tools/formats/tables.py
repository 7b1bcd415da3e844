"""Tables with images for the tests: parquet files with columns of images, texts and other values."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from tests.data_tools.folders import photo

SIZE = (40, 32)


def jpeg(seed: int) -> bytes:
    """Return a small photo as JPEG."""
    buffer = io.BytesIO()
    photo(seed, SIZE).save(buffer, "JPEG")
    return buffer.getvalue()


def mask_png(color: str = "L") -> bytes:
    """Return a mask as PNG: white in the left half; with "RGB", an image in color."""
    buffer = io.BytesIO()
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (0, 0, 20, 32))
    (mask if color == "L" else photo(99, SIZE)).save(buffer, "PNG")
    return buffer.getvalue()


def cell(data: bytes | None, name: str | None = None) -> dict[str, Any]:
    """Return an image as `datasets` stores it."""
    return {"bytes": data, "path": name}


def write_table(path: Path, **columns: list[Any]) -> Path:
    """Write a parquet file; the texts "photo 1" and "mask" in a column become images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: list(map(_value, values)) for name, values in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(values), path)
    return path


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_value, value))
    if isinstance(value, str) and value.startswith("photo "):
        return cell(jpeg(int(value.removeprefix("photo "))))
    if value in ("mask", "color mask"):
        return cell(mask_png("L" if value == "mask" else "RGB"))
    return value

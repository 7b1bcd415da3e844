"""Size of the cache folder, by what lies in it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from lorakit.models import base_model
from lorakit.models.memory import format_bytes


def cache_sizes(folder: Path | None = None) -> dict[str, int]:
    """Return the bytes of each part of the cache folder (latents, text, bases, ...), largest first.

    Files beside the parts count as "other". A file that another process removes meanwhile does not count.
    """
    root = folder or base_model.cache_folder()
    sizes: dict[str, int] = {}
    for path, _, names in os.walk(root):
        inner = Path(path).relative_to(root).parts
        for name in names:
            with contextlib.suppress(OSError):
                part = inner[0] if inner else "other"
                sizes[part] = sizes.get(part, 0) + os.lstat(os.path.join(path, name)).st_size
    return dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))


def describe_sizes(sizes: dict[str, int]) -> str:
    """Return the whole size and those of the parts, for people."""
    if not sizes:
        return "empty"
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.items())
    return f"{format_bytes(sum(sizes.values()))}: {parts}"

"""The result of an import or export: files that were written, and everything that was not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.findings import pluralize
from data_tools.formats.import_log import ImportLog
from data_tools.formats.left_out import LeftOut
from lorakit.core.visible_text import escape_name


@dataclass
class TransferResult:
    """The files that were written.

    `num_shards` counts files of a shared container (tars, tables, zip); `resize_errors` gives the reason for
    each image that was copied unchanged instead. `log` has the columns by role, the splits, and what was left
    out; `notes` say what the program that the export is for does differently.
    """

    path: Path
    num_images: int = 0
    num_masks: int = 0
    num_conditioning_images: int = 0
    num_resized: int = 0
    num_text_files: int = 0
    num_shards: int = 0
    resize_errors: dict[str, str] = field(default_factory=dict)
    log: ImportLog = field(default_factory=ImportLog)
    notes: list[str] = field(default_factory=list)

    @property
    def left_out(self) -> LeftOut:
        """Everything that was left out, with the reasons."""
        return self.log.left_out

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON, for scripts."""
        return {
            "path": str(self.path),
            "num_images": self.num_images,
            "num_masks": self.num_masks,
            "num_conditioning_images": self.num_conditioning_images,
            "num_resized": self.num_resized,
            "num_text_files": self.num_text_files,
            "num_shards": self.num_shards,
            "resize_errors": self.resize_errors,
            "columns": self.log.columns,
            "splits": self.log.splits,
            "left_out": self.left_out.to_json(),
            "notes": [*self.notes, *(f"{number} {text}" for text, number in self.log.remarks.items())],
        }

    def summary(self) -> str:
        """Return the result as text, for people."""
        parts = [pluralize(self.num_images, "image")]
        parts += [f"{self.num_resized} of them resized"] if self.num_resized else []
        parts += [pluralize(self.num_masks, "mask")] if self.num_masks else []
        number = self.num_conditioning_images
        parts += [pluralize(number, "conditioning image")] if number else []
        parts += [pluralize(self.num_text_files, "caption or metadata file")] if self.num_text_files else []
        parts += [f"in {pluralize(self.num_shards, 'file')}"] if self.num_shards else []
        lines = [f"{self.path}: {', '.join(parts)}"]
        if self.log.columns:
            named = [(role, ", ".join(map(escape_name, own))) for role, own in self.log.columns.items()]
            lines.append(f"  columns    {'; '.join(f'{role}: {own}' for role, own in named)}")
        if self.log.splits:
            lines.append(f"  splits     {', '.join(map(escape_name, self.log.splits))}: a folder for each")
        lines += [
            f"  unreadable {escape_name(name)}, copied unchanged: {reason}"
            for name, reason in self.resize_errors.items()
        ]
        lines += self.left_out.lines()
        lines += [f"  note       {number} {text}" for text, number in self.log.remarks.items()]
        return "\n".join([*lines, *(f"  note       {escape_name(note)}" for note in self.notes)])

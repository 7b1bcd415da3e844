"""Journals of answers: each answer is appended at once, so a stopped command requests only the missing ones.

Each shard has a journal of its own, so that several machines may write into one folder; the command without a
shard reads all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.captioners import CaptionResponse
from data_tools.captions.caption_jobs import CaptionJob, CaptionResult
from lorakit.core import storage

JOURNAL = ".lorakit-captions.jsonl"
_ANY_JOURNAL = re.compile(r"\.lorakit-captions(?:-\d+-of-\d+)?\.jsonl")


def shard_journal(number: int, count: int) -> str:
    """Return the name of the journal of shard `number` (from 1) of `count`."""
    return f".lorakit-captions-{number}-of-{count}.jsonl"


@dataclass(frozen=True)
class CaptionJournal:
    """The journals in a dataset folder; new answers are appended to the one of `name`."""

    folder: Path
    name: str = JOURNAL

    def answers(self) -> dict[str, CaptionResponse]:
        """Return the answers of stopped runs and of shards by key; failed requests are repeated."""
        rows = [row for path in self._paths() for row in storage.read_jsonl(path, torn_tail=True)]
        return {
            row["key"]: CaptionResponse(row["text"], tuple(row["tags"]), notes=tuple(row["notes"]))
            for row in reversed(rows)  # of equal images in several shards, the first one counts
            if row.keys() >= {"key", "text", "tags", "notes"}
        }

    def append(self, job: CaptionJob, result: CaptionResult) -> None:
        """Append a result in one write call."""
        row: dict[str, Any] = {"key": job.key, "file": job.record.file}
        if isinstance(result, CaptionResponse):
            row |= {"text": result.text, "tags": list(result.tags), "notes": list(result.notes)}
        else:
            row |= {"error": result.reason}
        storage.append_jsonl(self.folder / self.name, row)

    def remove(self) -> None:
        """Remove all journals, after their answers are in the manifest."""
        for path in self._paths():
            storage.remove_file(path)

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if _ANY_JOURNAL.fullmatch(path.name))

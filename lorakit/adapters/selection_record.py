"""The checkpoint that the evaluation of a run selected, as `RUN/eval/selection.json` records it.

`lorakit.evaluation.selection_file` writes the record; here it is read, and compared with the run of today: a
selection whose file is gone or changed, or of a run that was trained on since, is outdated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorakit.core import checksums, storage
from lorakit.core.errors import LorakitError, first_line

EVALUATION_FOLDER = "eval"
SELECTION_FILE = f"{EVALUATION_FOLDER}/selection.json"  # in the folder of a run
FORMAT_VERSION = 1


@dataclass(frozen=True)
class SelectionRecord:
    """The variant that an evaluation selected, or the best one with its alarms if it recommends none."""

    variant: str | None
    """Its name in the report; None if nothing could be selected: `reason` says why."""
    step: int | None
    strength: float | None
    file: str | None
    """The adapter file, relative to the run's folder."""
    sha256: str | None
    """The hash of that file."""
    recommended: bool
    """False for a variant that is the best one and has alarms."""
    reason: str
    verdict: str
    last_step: int
    """The newest step of the run when it was evaluated."""
    prompts_sha256: str
    num_prompts: int
    alarms: list[dict[str, Any]] = field(default_factory=list)
    """Alarms of the variant: name, title, message, ..."""
    scores: list[dict[str, str]] = field(default_factory=list)
    """Rows for model cards, as text: score, prompts, base, adapter, change, meaning."""
    images: dict[str, str] = field(default_factory=dict)
    """Folders of the images without and with the adapter, relative to the run's: `base`, `adapter`."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; without a time, so that the same evaluation gives the same bytes."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SelectionRecord:
        """Read the values that `to_json` writes; raises ValueError, TypeError or KeyError for others."""
        if value["format_version"] != FORMAT_VERSION:
            raise ValueError("written by another version of lorakit")
        record = cls(**{name: entry for name, entry in value.items() if name != "format_version"})
        if record.file is not None and not isinstance(record.step, int):
            raise TypeError("the step is not a number")
        if record.file is not None and (Path(record.file).is_absolute() or ".." in Path(record.file).parts):
            raise ValueError("the file lies outside the run")
        if not isinstance(record.last_step, int) or not isinstance(record.reason, str):
            raise TypeError("impossible values")
        if record.strength is not None:
            float(record.strength)
        return record

    def find_problem(self, run: Path, last_step: int) -> str | None:
        """Return why the selection is outdated, for a run whose newest step is now `last_step`."""
        if last_step > self.last_step:
            return f"the run was trained on to step {last_step} since, from step {self.last_step}"
        if self.file is None:
            return None
        file = run / self.file
        if not file.is_file():
            return f"the checkpoint of step {self.step} is gone"
        if checksums.sha256_file(file) != self.sha256:
            return f"the adapter of step {self.step} was changed since"
        return None


@dataclass(frozen=True)
class ReadSelection:
    """The content of selection.json: a record, or the reason why there is none that can be used."""

    record: SelectionRecord | None
    problem: str | None
    """The reason why a record cannot be used; None if it can, or if the run was not evaluated."""
    when: str = ""
    """The time of the evaluation, for people."""


def read_selection(run: Path, last_step: int) -> ReadSelection:
    """Read the selection of a run whose newest step is `last_step`."""
    file = run / SELECTION_FILE
    if not file.is_file():
        return ReadSelection(None, None)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))
    try:
        record = SelectionRecord.from_json(storage.read_json(file))
    except (LorakitError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return ReadSelection(None, f"{SELECTION_FILE} cannot be read: {first_line(error)}", when)
    return ReadSelection(record, record.find_problem(run, last_step), when)

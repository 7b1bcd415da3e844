"""The adapter that a path names: a file, the folder of peft or diffusers, or a checkpoint of a run.

runs/dog             the checkpoint that the evaluation selected, at its strength; else the last one
runs/dog@400         the checkpoint of a step; runs/dog@last is the last one
runs/dog@400:0.8     at another strength; dog.safetensors:0.8 as well
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from lorakit.adapters.files import METADATA_KEY, read_adapter_metadata
from lorakit.adapters.formats.read import ADAPTER_FILE_NAMES
from lorakit.adapters.selection_record import SelectionRecord, read_selection
from lorakit.core import platform, storage
from lorakit.core.errors import ConfigError, LorakitError
from lorakit.core.path_kind import it_is
from lorakit.core.progress import print_line

ADAPTER_FILE, CHECKPOINTS_FOLDER, RECIPE_FILE = ADAPTER_FILE_NAMES[0], "checkpoints", "recipe.yaml"
LAST = "last"
_STEP_FOLDER = re.compile(r"step-(\d{8})")
_DRIVE = re.compile(r"[A-Za-z]")


@dataclass(frozen=True)
class AdapterSource:
    """An adapter file or folder, the strength to use it with, and for a run the checkpoint and the reason."""

    path: Path
    strength: float = 1.0
    run: Path | None = None
    step: int | None = None
    reason: str = ""
    """The reason for this checkpoint of a run; empty for a file."""
    is_selected: bool = False
    """True if an evaluation selected it."""
    is_last: bool = False

    @property
    def weights_file(self) -> Path:
        """The file with the tensors; `path` may be the folder of peft or diffusers."""
        if not self.path.is_dir():
            return self.path
        return next(self.path / name for name in ADAPTER_FILE_NAMES if (self.path / name).is_file())

    @property
    def line(self) -> str | None:
        """A line for people about the file of a run that is used, and why; None for a file."""
        if self.run is None:
            return None
        strength = "" if self.strength == 1 else f", at strength {self.strength:g}"
        return f"{self.run}: {self.reason}{strength} ({self.path})"

    def print_line(self) -> AdapterSource:
        """Print the line, if there is one, and return the source."""
        if self.line:
            print_line(self.line)
        return self

    def export_folder(self) -> Path:
        """Return the default folder of its exports: a checkpoint has a folder of its own in its run's."""
        if self.run is None:
            return self.path.parent / "exports"
        if self.is_last:
            return self.run / "exports"
        return self.run / "exports" / f"step-{self.step:08d}"


def parse_adapter_source(text: str) -> AdapterSource:
    """Find the adapter that PATH, RUN@STEP or RUN@last names, each with an optional :STRENGTH.

    Raises ConfigError for a path without an adapter, a step without a checkpoint, and for a strength that is
    not a finite number.
    """
    path, strength = text, None
    head, colon, tail = text.rpartition(":")
    if colon and not Path(text).exists() and not _is_drive(head, tail):
        path, strength = head, _parse_strength(tail, text)
    source = find_adapter(path)
    return source if strength is None else replace(source, strength=strength)


def _is_drive(head: str, tail: str) -> bool:
    r"""Return True for the colon of a drive of Windows: C:\runs\dog, C:/runs/dog."""
    return bool(_DRIVE.fullmatch(head)) and (tail.startswith(("\\", "/")) or not _is_number(tail))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse_strength(text: str, where: str) -> float:
    strength = float(text) if _is_number(text) else math.nan
    if not math.isfinite(strength):
        raise ConfigError(f"{text!r} is not a strength", where=where, remedy="write FILE:0.8, for instance")
    return strength


def find_adapter(path: str | Path) -> AdapterSource:
    """Find the adapter that PATH, RUN@STEP or RUN@last names; a run alone is its selected checkpoint.

    Raises ConfigError for a path without an adapter and a step without a checkpoint.
    """
    path, step = split_step(path)
    if is_run(path):
        return _find_checkpoint(path, step)
    if step is not None:
        raise ConfigError(
            f"only a run has checkpoints to choose with @{it_is(path)}",
            where=f"{path}@{step}",
            remedy="give the folder of a run before the @, or a file without it",
        )
    if path.is_dir() and any((path / name).is_file() for name in ADAPTER_FILE_NAMES[1:]):
        return AdapterSource(path)
    file = path / ADAPTER_FILE if path.is_dir() else path
    if not file.is_file():
        remedy = "give the folder of a run or an adapter file"
        raise ConfigError(f"there is no such adapter{it_is(path)}", where=str(path), remedy=remedy)
    return AdapterSource(file)


def split_step(path: str | Path) -> tuple[Path, str | None]:
    """Split RUN@STEP into the folder and the step; a path that exists is a path, whatever it contains."""
    text = str(path)
    head, at, step = text.rpartition("@")
    if not at or Path(text).exists() or not (step == LAST or step.isdecimal()):
        return Path(path), None
    return Path(head), step


def is_run(folder: Path) -> bool:
    """Return True for the folder of a run."""
    return (folder / RECIPE_FILE).is_file()


def checkpoint_files(run: Path) -> dict[int, Path]:
    """Return the adapter files of a run by step, ascending; the finished adapter replaces its checkpoint."""
    files: dict[int, Path] = {}
    folder = run / CHECKPOINTS_FOLDER
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _STEP_FOLDER.fullmatch(entry.name)
        if match and (entry / ADAPTER_FILE).is_file():
            files[int(match[1])] = entry / ADAPTER_FILE
    final = run / ADAPTER_FILE
    if final.is_file():
        files[_recorded_step(final)] = final
    return dict(sorted(files.items()))


def _recorded_step(file: Path) -> int:
    if METADATA_KEY not in storage.read_safetensors_metadata(file):
        return 0
    step = read_adapter_metadata(file).get("step", 0)
    return step if isinstance(step, int) else 0


def _find_checkpoint(run: Path, step: str | None) -> AdapterSource:
    files = checkpoint_files(run)
    if not files:
        remedy = "let it train until it has saved a checkpoint: `train.save_every`"
        raise ConfigError("the run has no adapter yet", where=str(run), remedy=remedy)
    last = max(files)
    if step is None:
        return _selected_or_last(run, files)
    number = last if step == LAST else int(step)
    if number not in files:
        remedy = f"{LAST}, or one of {', '.join(map(str, files))}"
        raise ConfigError(f"no checkpoint of step {number}", where=f"{run}@{step}", remedy=remedy)
    reason = f"{_last_text(last)}, as requested" if step == LAST else f"step {number}, as requested"
    return AdapterSource(files[number], 1.0, run, number, reason, is_last=number == last)


def _selected_or_last(run: Path, files: dict[int, Path]) -> AdapterSource:
    last = max(files)
    selection = read_selection(run, last)
    record = selection.record
    if record and record.file and record.step is not None and not selection.problem:
        reason = f"step {record.step}, {_selection_text(record, selection.when)}"
        strength = 1.0 if record.strength is None else float(record.strength)
        is_last = record.step == last and strength == 1
        return AdapterSource(run / record.file, strength, run, record.step, reason, True, is_last)
    if selection.problem:
        again = f"lorakit eval run {platform.quote_argument(str(run))}"
        why = f"the evaluation of {selection.when} is outdated: {selection.problem}; evaluate again: {again}"
    elif record:
        why = f"the evaluation of {selection.when} selected none: {record.reason}"
    else:
        why = "the run has no evaluation"
    return AdapterSource(files[last], 1.0, run, last, f"{_last_text(last)}: {why}", is_last=True)


def _last_text(step: int) -> str:
    return f"the last step {step}" if step else "the finished adapter"


def _selection_text(record: SelectionRecord, when: str) -> str:
    if record.recommended:
        return f"selected by the evaluation of {when}"
    titles = ", ".join(str(alarm.get("title", alarm.get("name"))) for alarm in record.alarms)
    return f"the best in the evaluation of {when}, which recommends none: {titles or record.reason}"


def read_last_step(run: Path) -> int:
    """Return the newest step that a run has an adapter of; 0 without any."""
    try:
        return max(checkpoint_files(run), default=0)
    except LorakitError:
        return 0

"""A run's folder: its settings, inputs, progress and log. Needs no torch.

`run_changes` decides with which settings, data, base model and software it is resumed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lorakit.config.recipe import Recipe
from lorakit.core import file_locks, input_files, output_paths, storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.path_kind import it_is
from lorakit.core.progress import print_line
from lorakit.core.secret_text import mask_secrets
from lorakit.core.strict_json import parse_json
from lorakit.core.visible_text import escape_controls
from lorakit.models import base_model
from lorakit.training import data_folders, run_records

HEARTBEAT_EVERY = 5.0  # seconds
LOCK_WAIT = 15.0  # seconds that a start waits for another process on the same run to end


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that the run can be resumed from any folder."""

    def absolute(path: Path | None) -> Path | None:
        return path.resolve() if path else None

    changes: dict[str, Any] = {
        "base": base_model.absolute_spec(recipe.base),
        "out": recipe.out.resolve(),
        "init_from": absolute(recipe.init_from),
        **data_folders.absolute_data_folders(recipe),
        "samples": recipe.samples.model_copy(update={"prompts": absolute(recipe.samples.prompts)}),
    }
    return recipe.model_copy(update=changes)


def is_run_folder(path: str | os.PathLike[str]) -> bool:
    """Return True if a path is the folder of a run."""
    return (Path(path) / run_records.RECIPE_FILE).is_file()


def run_recipe_file(run: str | os.PathLike[str]) -> str:
    """The recipe.yaml of a run's folder; a `ConfigError` if there is none."""
    file = Path(run) / run_records.RECIPE_FILE
    if not file.is_file():
        what = f"not a run{it_is(run)}" if Path(run).exists() else "there is no such run"
        raise ConfigError(what, where=str(run), remedy="give a run's folder, which has a recipe.yaml")
    return str(file)


class RunFolder:
    """The folder of one run; every write goes through storage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last_heartbeat, self._phase = 0.0, ""
        self._pending_log: list[str] = []

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the lock is free when the process ends, however it ends.

        A process that was asked to stop may still be saving its last step: it is waited for.
        """
        file = self.path / storage.LOCK

        def say_waiting() -> None:
            print_line(f"another process is working on this run; waiting up to {LOCK_WAIT:g} s for its end")

        with storage.file_lock(file, wait_seconds=LOCK_WAIT, on_wait=say_waiting) as held:
            if not held:
                marker = file_locks.lock_owner(file)
                elsewhere = f"; if it ran on another machine and has ended, remove {marker}" if marker else ""
                raise ConfigError(
                    "another process is working on this run",
                    where=str(self.path),
                    remedy=f"wait for it, stop it, or choose another `out`{elsewhere}",
                )
            yield

    def check_paths(self, recipe: Recipe) -> None:
        """Refuse a missing dataset, and an `out` that cannot be written or would mix with other files."""
        output_paths.check_output_path(self.path, "out")
        data_folders.check_data_folders(recipe, self.path)
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError("`out` is a file", where=f"out: {self.path}", remedy="choose a new folder")
        if self.exists or not self.path.is_dir():
            return
        if any(not storage.is_internal_file(entry) for entry in self.path.iterdir()):
            raise ConfigError(
                "`out` exists, is not empty and is not a run",
                where=f"out: {self.path}",
                remedy="choose a new folder",
            )

    def write_new_record(self, recipe: Recipe, identity: Mapping[str, Any]) -> None:
        """Record a run that starts with these settings, inputs and versions."""
        machine = {"platform": platform.platform(), "processor": platform.machine()}
        storage.write_json(self.record_file, {**identity, "machine": machine, "status": "running"})
        self.write_recipe(recipe)

    def write_recipe(self, recipe: Recipe) -> None:
        """Write recipe.yaml, which `lorakit resume` reads, from any folder."""
        text = yaml.safe_dump(_with_absolute_paths(recipe).dump(), sort_keys=False, allow_unicode=True)
        storage.write_text(self.path / run_records.RECIPE_FILE, text)

    @property
    def record_file(self) -> Path:
        """run.json."""
        return self.path / run_records.RUN_FILE

    @property
    def adapter_file(self) -> Path:
        """The finished adapter."""
        return self.path / run_records.ADAPTER_FILE

    @property
    def metrics_file(self) -> Path:
        """metrics.jsonl, the complete record of losses and other metrics."""
        return self.path / run_records.METRICS_FILE

    @property
    def exists(self) -> bool:
        """True if the folder is a run; before that nothing is written, for the start may be refused."""
        return self.record_file.exists()

    def record(self) -> dict[str, Any]:
        """Read run.json. Raises DataError if it is not the record of a run."""
        values = storage.read_json(self.record_file)
        if problem := run_records.find_record_problem(values):
            raise DataError(
                f"{run_records.RUN_FILE} is not the record of a run: {problem}",
                where=str(self.record_file),
                remedy="restore the file from a backup, or start over with --fresh",
            )
        return dict(values)

    def update_record(self, **values: Any) -> None:
        """Change values of run.json; None removes one."""
        record = self.record() | values
        storage.write_json(self.record_file, {k: v for k, v in record.items() if v is not None})

    @property
    def status(self) -> str:
        """running, interrupted, failed or done; empty for a new run."""
        return str(self.record()["status"]) if self.exists else ""

    def log(self, text: str) -> None:
        """Print a line and append it to log.txt; a closed terminal does not stop the run."""
        print_line(text)
        self._pending_log.append(escape_controls(mask_secrets(text)) + "\n")
        if self.exists:
            storage.append_text(self.path / run_records.LOG_FILE, "".join(self._pending_log))
            self._pending_log.clear()

    def heartbeat(
        self, phase: str, done: int, total: int, seconds_left: float, *, at_once: bool = False
    ) -> None:
        """Write heartbeat.json: at once in a new phase, otherwise every few seconds.

        A phase without any work, such as filling caches that are full, is left out.
        """
        now = time.monotonic()
        is_due = at_once or phase != self._phase or now - self._last_heartbeat >= HEARTBEAT_EVERY
        if is_due and total and self.exists:
            self._last_heartbeat, self._phase = now, phase
            values = {
                "phase": phase,
                "step": done,
                "total_steps": total,
                "seconds_left": round(seconds_left),
                "pid": os.getpid(),
            }
            storage.write_json(self.path / run_records.HEARTBEAT_FILE, values)

    def metrics(self) -> list[dict[str, Any]]:
        """Read all rows of metrics.jsonl that can be read; see `unreadable_metrics` for the others."""
        return self._read_metrics()[0]

    def _read_metrics(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the rows, and the lines that are not rows. The last line may be torn by a crash."""
        rows, unreadable = [], []
        data = b""
        if self.metrics_file.exists():
            data = input_files.read_regular(self.metrics_file, storage.MAX_JSONL_BYTES)
        lines = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line, f"{self.metrics_file}, line {number}")
            except DataError:
                row = None
            if isinstance(row, dict) and type(row.get("step")) is int:
                rows.append(row)
            elif number < len(lines) and b"\0" not in line:
                unreadable.append(line.decode("utf-8", "backslashreplace"))
        return rows, unreadable

    def rewind_metrics(self, step: int) -> None:
        """Drop rows after `step`: the steps since the last checkpoint are repeated, with equal results."""
        if not self.metrics_file.exists():
            return
        rows, unreadable = self._read_metrics()
        if unreadable:
            file = self.path / run_records.UNREADABLE_METRICS_FILE
            storage.append_text(file, "".join(f"{line}\n" for line in unreadable))
            name = self.metrics_file.name
            self.log(f"warning: {len(unreadable)} lines of {name} cannot be read; moved to {file}")
        storage.write_jsonl(self.metrics_file, [row for row in rows if row["step"] <= step])

"""A run's folder: its settings, inputs, progress and log. Needs no torch.

A run is resumed only with the settings, data and base model that it was started with; anything else is
refused with the difference.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from lorakit.config.recipe import Recipe, training_settings
from lorakit.core import output_paths, storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import print_line
from lorakit.models import base_model
from lorakit.training import run_records

HEARTBEAT_EVERY = 5.0  # seconds
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "numpy",
)


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers."""
    own = {"python": platform.python_version(), "lorakit": metadata.version("lorakit")}
    return own | {name: metadata.version(name) for name in PACKAGES}


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that the run can be resumed from any folder."""

    def absolute(path: Path | None) -> Path | None:
        return path.resolve() if path else None

    changes: dict[str, Any] = {
        "base": base_model.absolute_spec(recipe.base),
        "dataset": recipe.dataset.resolve(),
        "out": recipe.out.resolve(),
        "init_from": absolute(recipe.init_from),
        "class_images": absolute(recipe.class_images),
        "samples": recipe.samples.model_copy(update={"prompts": absolute(recipe.samples.prompts)}),
    }
    return recipe.model_copy(update=changes)


def run_recipe_file(run: str | os.PathLike[str]) -> str:
    """The recipe.yaml of a run's folder; a `ConfigError` if there is none."""
    file = Path(run) / run_records.RECIPE_FILE
    if not file.is_file():
        raise ConfigError("not a run: it has no recipe.yaml", where=str(run), remedy="give a run's folder")
    return str(file)


def record_differences(old: Mapping[str, Any], new: Mapping[str, Any], *, parts: Sequence[str]) -> list[str]:
    """One line, `key: before -> after`, for each value that differs in `parts` of two run.json."""
    lines = []
    for part in parts:
        before, after = old[part], new[part]
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                lines.append(f"{key}: {before.get(key)} -> {after.get(key)}")
    return lines


class RunFolder:
    """The folder of one run; every write goes through storage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last_heartbeat, self._phase = 0.0, ""
        self._pending_log: list[str] = []

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the system releases it when the process ends, however it ends."""
        with storage.file_lock(self.path / storage.LOCK) as held:
            if not held:
                raise ConfigError(
                    "another process is working on this run",
                    where=str(self.path),
                    remedy="wait for it, stop it, or choose another `out`",
                )
            yield

    def check_paths(self, recipe: Recipe) -> None:
        """Refuse a missing dataset, and an `out` that cannot be written or would mix with other files."""
        output_paths.check_output_path(self.path, "out")
        for key, folder in (("dataset", recipe.dataset), ("class_images", recipe.class_images)):
            if folder:
                self._check_disjoint(key, folder)
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError("`out` is a file", where=f"out: {self.path}", remedy="choose a new folder")
        if self._exists or not self.path.is_dir():
            return
        if any(not storage.is_internal_file(entry) for entry in self.path.iterdir()):
            raise ConfigError(
                "`out` exists, is not empty and is not a run",
                where=f"out: {self.path}",
                remedy="choose a new folder",
            )

    def _check_disjoint(self, key: str, folder: Path) -> None:
        out, data = self.path.resolve(), folder.resolve()
        if not data.is_dir():
            raise ConfigError(
                "there is no such dataset folder",
                where=f"{key}: {folder}",
                remedy="give the folder that holds your images",
            )
        if out.is_relative_to(data) or data.is_relative_to(out):
            raise ConfigError(
                "one of `out` and the dataset is inside the other",
                where=f"out: {self.path}, {key}: {folder}",
                remedy="choose two separate folders",
            )

    def start_or_resume(self, recipe: Recipe, inputs: Mapping[str, Any]) -> None:
        """Record a new run, or check that an existing one is the same; `inputs` are hashes, mostly."""
        record = {
            "settings": training_settings(recipe),
            "inputs": dict(inputs),
            "versions": package_versions(),
        }
        if self._exists:
            storage.remove_partial_files(self.path)
            self._check_same_run(self.record(), record)
        else:
            machine = {"platform": platform.platform(), "processor": platform.machine()}
            storage.write_json(self.record_file, {**record, "machine": machine, "status": "running"})
        text = yaml.safe_dump(_with_absolute_paths(recipe).dump(), sort_keys=False, allow_unicode=True)
        storage.write_text(self.path / run_records.RECIPE_FILE, text)

    def _check_same_run(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        if lines := record_differences(old, new, parts=("settings", "inputs", "versions")):
            raise ConfigError(
                "this run was started with something else:\n    " + "\n    ".join(lines),
                where=str(self.path),
                remedy="undo the change to resume this run, or choose another `out` for a new one",
            )

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
    def _exists(self) -> bool:
        """True if the folder is a run; before that nothing is written, for the start may be refused."""
        return self.record_file.exists()

    def record(self) -> dict[str, Any]:
        """The content of run.json."""
        values: dict[str, Any] = storage.read_json(self.record_file)
        return values

    def update_record(self, **values: Any) -> None:
        """Change values of run.json; None removes one."""
        record = self.record() | values
        storage.write_json(self.record_file, {k: v for k, v in record.items() if v is not None})

    @property
    def status(self) -> str:
        """running, interrupted, failed or done; empty for a new run."""
        return str(self.record()["status"]) if self._exists else ""

    def log(self, text: str) -> None:
        """Print a line and append it to log.txt; a closed terminal does not stop the run."""
        print_line(text)
        self._pending_log.append(text + "\n")
        if self._exists:
            storage.append_text(self.path / run_records.LOG_FILE, "".join(self._pending_log))
            self._pending_log.clear()

    def heartbeat(self, phase: str, done: int, total: int, seconds_left: float) -> None:
        """Write heartbeat.json: at once in a new phase, otherwise every few seconds."""
        now = time.monotonic()
        if self._exists and (phase != self._phase or now - self._last_heartbeat >= HEARTBEAT_EVERY):
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
        """Read all rows of metrics.jsonl."""
        return storage.read_jsonl(self.metrics_file, torn_tail=True) if self.metrics_file.exists() else []

    def rewind_metrics(self, step: int) -> None:
        """Drop rows after `step`: the steps since the last checkpoint are repeated, with equal results."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        if self.metrics_file.exists():
            storage.write_jsonl(self.metrics_file, rows)

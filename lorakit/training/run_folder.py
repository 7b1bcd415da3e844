"""A run's folder: what it was started with, where it stands, what it printed. Torch-free.

A run goes on only with the settings, data and base it began with; anything else is refused with the
difference.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from lorakit.config.recipe import Recipe, training_settings
from lorakit.core import output_paths, storage
from lorakit.core.errors import ConfigError
from lorakit.models import base_model

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
    """Versions of the software that decides a run's numbers."""
    found = {"python": platform.python_version(), "lorakit": metadata.version("lorakit")}
    return found | {name: metadata.version(name) for name in PACKAGES}


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with whole paths, so that the run can be gone on with from any folder."""
    prompts = recipe.samples.prompts
    samples = recipe.samples.model_copy(update={"prompts": prompts.resolve() if prompts else None})
    first = recipe.init_from.resolve() if recipe.init_from else None
    changes: dict[str, Any] = {"dataset": recipe.dataset.resolve(), "out": recipe.out.resolve()}
    changes["class_images"] = recipe.class_images.resolve() if recipe.class_images else None
    changes |= {"samples": samples, "init_from": first}
    changes["base"] = base_model.absolute_spec(recipe.base)
    return recipe.model_copy(update=changes)


def run_recipe_file(run: str | os.PathLike[str]) -> str:
    """The recipe.yaml of a run's folder; a `ConfigError` when it is none."""
    file = Path(run) / "recipe.yaml"
    if not file.is_file():
        raise ConfigError("not a run: it has no recipe.yaml", where=str(run), remedy="give a run's folder")
    return str(file)


def record_differences(old: Mapping[str, Any], new: Mapping[str, Any], *, parts: Sequence[str]) -> list[str]:
    """One line, `key: before -> after`, for each value that differs in these parts of two run.json."""
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
        self._beat, self._phase = 0.0, ""
        self._early: list[str] = []

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the system lets go of it when the process dies, however it dies."""
        with storage.file_lock(self.path / storage.LOCK) as held:
            if not held:
                raise ConfigError(
                    "another process is working on this run",
                    where=str(self.path),
                    remedy="wait for it, stop it, or choose another `out`",
                )
            yield

    def check_places(self, recipe: Recipe) -> None:
        """Refuse a missing dataset, and an `out` that cannot be written or would mix with other files."""
        output_paths.check_output_path(self.path, "out")
        for key, folder in (("dataset", recipe.dataset), ("class_images", recipe.class_images)):
            if folder:
                self._check_apart(key, folder)
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError("`out` is a file", where=f"out: {self.path}", remedy="choose a new folder")
        strangers = self.path.is_dir() and not self._begun
        if strangers and any(not storage.is_internal_file(entry) for entry in self.path.iterdir()):
            raise ConfigError(
                "`out` exists, is not empty and is not a run",
                where=f"out: {self.path}",
                remedy="choose a new folder",
            )

    def _check_apart(self, key: str, folder: Path) -> None:
        out, data = self.path.resolve(), folder.resolve()
        if not data.is_dir():
            raise ConfigError(
                "there is no such dataset folder",
                where=f"{key}: {folder}",
                remedy="give the folder that holds your images",
            )
        if out.is_relative_to(data) or data.is_relative_to(out):
            raise ConfigError(
                "`out` and the dataset lie in each other",
                where=f"out: {self.path}, {key}: {folder}",
                remedy="choose folders beside each other",
            )

    def begin(self, recipe: Recipe, inputs: Mapping[str, str]) -> None:
        """Record a new run, or check that an old one is the same; `inputs` are hashes of data and base."""
        record = {
            "identity": training_settings(recipe),
            "inputs": dict(inputs),
            "versions": package_versions(),
        }
        if self._begun:
            storage.remove_partial_files(self.path)
            self._compare(storage.read_json(self.path / "run.json"), record)
        else:
            machine = {"platform": platform.platform(), "processor": platform.machine()}
            storage.write_json(self.path / "run.json", {**record, "machine": machine, "status": "running"})
        text = yaml.safe_dump(_with_absolute_paths(recipe).dump(), sort_keys=False, allow_unicode=True)
        storage.write_text(self.path / "recipe.yaml", text)

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        if lines := record_differences(old, new, parts=("identity", "inputs", "versions")):
            raise ConfigError(
                "this run was started with something else:\n    " + "\n    ".join(lines),
                where=str(self.path),
                remedy="undo the change to go on with this run, or choose another `out` for a new one",
            )

    @property
    def status(self) -> str:
        """running, interrupted, failed or done; empty for a new run."""
        file = self.path / "run.json"
        return str(storage.read_json(file)["status"]) if file.exists() else ""

    def update(self, **values: Any) -> None:
        """Change values of run.json; None removes one."""
        record = storage.read_json(self.path / "run.json") | values
        kept = {name: value for name, value in record.items() if value is not None}
        storage.write_json(self.path / "run.json", kept)

    @property
    def _begun(self) -> bool:
        """Whether the folder is a run: before that nothing is left in it, for the start may be refused."""
        return (self.path / "run.json").exists()

    def say(self, text: str) -> None:
        """Print a line and keep it in log.txt; a closed terminal does not stop the run."""
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)
        self._early.append(text + "\n")
        if self._begun:
            storage.append_text(self.path / "log.txt", "".join(self._early))
            self._early.clear()

    def heartbeat(self, phase: str, done: int, total: int, left: float) -> None:
        """Tell outsiders where the run stands, at once in a new phase, else every few seconds; `left` in
        seconds."""
        now = time.monotonic()
        if self._begun and (phase != self._phase or now - self._beat >= HEARTBEAT_EVERY):
            self._beat, self._phase = now, phase
            beat = {"phase": phase, "step": done, "steps": total, "seconds_left": round(left)}
            storage.write_json(self.path / "heartbeat.json", beat | {"pid": os.getpid()})

    @property
    def metrics_file(self) -> Path:
        """The truth about the loss."""
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """All rows so far."""
        return storage.read_jsonl(self.metrics_file, torn_tail=True) if self.metrics_file.exists() else []

    def rewind_metrics(self, step: int) -> None:
        """Drop rows after `step`: the steps since the last commit are done again, equal to the lost ones."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        if self.metrics_file.exists():
            storage.write_jsonl(self.metrics_file, rows)

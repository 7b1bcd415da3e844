"""Train a run again from its stored recipe, and compare the two adapters byte for byte."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorakit.config import recipe as recipes
from lorakit.config.recipe import Recipe
from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError
from lorakit.training import run_folder, run_identity, run_memory
from lorakit.training.run_folder import RunFolder

OUTPUT_ONLY_OVERRIDES = ("tracker=none", "export=[]", "samples.prompts=null", "validate.folder=null")
"""Settings that change no byte of the adapter, switched off the second time."""


@dataclass(frozen=True)
class Reproduction:
    """The recipe file, overrides and number of processes that train a run again."""

    recipe_file: str
    overrides: list[str]
    num_processes: int


@dataclass(frozen=True)
class ReproductionResult:
    """The comparison of a run's adapter file with that of its reproduction."""

    identical: bool
    original: str
    reproduction: str
    tensor_differences: dict[str, float]
    """The largest absolute difference of each tensor that differs; infinity if the shapes differ."""
    environment_differences: list[str]
    """Versions and machine, one line for each that differs."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def summary(self) -> str:
        """The verdict, with the likely reasons of a difference."""
        if self.identical:
            return f"equal, byte for byte: {self.original} and {self.reproduction}"
        largest = max(self.tensor_differences.values(), default=0.0)
        lines = [f"NOT equal: {len(self.tensor_differences)} tensors differ, by at most {largest:.3g}"]
        same = "software and machine are the same: please report this"
        return "\n  ".join([*lines, *(self.environment_differences or [same])])


def prepare_reproduction(run: Path, out: Path, overrides: list[str]) -> Reproduction:
    """Check that a run can be trained again; a ConfigError for settings or inputs that have changed."""
    file = run_folder.run_recipe_file(run)
    folder = RunFolder(run)
    if not folder.adapter_file.is_file():
        raise ConfigError(
            "this run is not finished", where=str(run), remedy=f"finish it first: lorakit resume {run}"
        )
    record = folder.record()
    if changes := record.get("changes"):
        raise ConfigError(
            f"this run continued with changes from step {changes[0]['step']} on, so it cannot be"
            f" trained again in one piece: {'; '.join(changes[0]['differences'])}",
            where=str(run),
            remedy="train its recipe.yaml with another `out` for a new run with the last settings",
        )
    overrides = [*OUTPUT_ONLY_OVERRIDES, *overrides, f"out={json.dumps(str(out))}"]
    recipe = recipes.load_recipe(file, overrides)
    if recipes.training_settings(recipe) != record["settings"]:
        raise ConfigError(
            "the settings in recipe.yaml are not those that this run was trained with",
            where=file,
            remedy="restore it; the settings are in run.json under `settings`",
        )
    _check_inputs(recipe, record["inputs"])
    overrides += _recorded_memory(record)
    return Reproduction(file, overrides, int(record["inputs"]["num_processes"]))


def _recorded_memory(record: dict[str, Any]) -> list[str]:
    """Return overrides with the memory settings that the run has decided, whatever memory is free now."""
    entry: dict[str, Any] = record.get("memory") or {}
    if not run_memory.is_memory_entry(entry):
        return []
    settings = {key: value for key, value in entry["settings"].items() if key != "quantize"}
    settings["quantize"] = entry["settings"]["quantize"] or "none"
    return [f"memory.{key}={json.dumps(value)}" for key, value in settings.items()]


def _check_inputs(recipe: Recipe, inputs: dict[str, Any]) -> None:
    from lorakit.models import base_model
    from lorakit.training import data_folders

    hashes = data_folders.possible_fingerprints(recipe)
    hashes["base"] = (base_model.base_hash(base_model.resolve_base(recipe.base)),)
    changed = [key for key, values in hashes.items() if inputs.get(key) not in values]
    if changed:
        sources = {"base": recipe.base} | recipe.data_folders
        raise ConfigError(
            f"not the data or base that this run was trained on: {', '.join(changed)}",
            where=", ".join(str(sources[key]) for key in changed),
            remedy=f"give the path of the original: lorakit reproduce RUN {'=... '.join(changed)}=...",
        )


def compare_runs(original: Path, reproduction: Path) -> ReproductionResult:
    """Compare the finished adapters of two runs."""
    runs = [RunFolder(original), RunFolder(reproduction)]
    files = [run.adapter_file for run in runs]
    hashes = [checksums.sha256_file(file) for file in files]
    records = [run.record() for run in runs]
    environment = run_identity.differences(records[0], records[1], parts=("versions", "machine"))
    differences = {}
    if hashes[0] != hashes[1]:
        first, second = (storage.read_safetensors(file) for file in files)
        for name in sorted(first.keys() | second.keys()):
            a, b = first.get(name), second.get(name)
            if a is None or b is None or a.shape != b.shape:
                differences[name] = float("inf")
            elif not a.equal(b):
                differences[name] = float((a - b).abs().max())
    return ReproductionResult(
        identical=hashes[0] == hashes[1],
        original=str(files[0]),
        reproduction=str(files[1]),
        tensor_differences=differences,
        environment_differences=[str(difference) for difference in environment],
    )

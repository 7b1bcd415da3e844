"""The same run once more from what it stored, and whether the adapter came out the same byte for byte."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.training import run_folder

# What changes no byte of the adapter is left out the second time.
OUTPUT_ONLY_OVERRIDES = ("tracker=none", "export=[]", "samples.prompts=null")


@dataclass(frozen=True)
class ReproductionResult:
    """`differences` are of software and machine; `tensors` maps a tensor that differs to its largest
    difference."""

    equal: bool
    first: str
    second: str
    tensors: dict[str, float]
    differences: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def text(self) -> str:
        """A verdict, with what may explain a difference."""
        if self.equal:
            return f"equal, byte for byte: {self.first} and {self.second}"
        worst = max(self.tensors.values(), default=0.0)
        lines = [f"NOT equal: {len(self.tensors)} tensors differ, by at most {worst:.3g}"]
        same = "software and machine are the same: please report this"
        return "\n  ".join([*lines, *(self.differences or [same])])


def prepare_reproduction(run: Path, out: Path, overrides: list[str]) -> tuple[str, list[str], int]:
    """(recipe file, overrides, processes) that train the run again; what cannot be the same is refused
    here."""
    file = run_folder.run_recipe_file(run)
    record = storage.read_json(run / "run.json")
    if not (run / "adapter.safetensors").is_file():
        raise ConfigError(
            "this run is not finished", where=str(run), remedy=f"finish it first: lorakit resume {run}"
        )
    changes = [*OUTPUT_ONLY_OVERRIDES, *overrides, f"out={json.dumps(str(out))}"]
    made = recipe.load_recipe(file, changes)
    if recipe.training_settings(made) != record["identity"]:
        raise ConfigError(
            "recipe.yaml no longer says what this run was trained with",
            where=file,
            remedy="restore it; the settings are in run.json under `identity`",
        )
    _check_inputs(made, record["inputs"])
    return file, changes, int(record["inputs"]["processes"])


def _check_inputs(made: recipe.Recipe, inputs: dict[str, str]) -> None:
    from lorakit import manifest
    from lorakit.data.items import load_training_records
    from lorakit.models import base_model

    now = {"base": base_model.base_hash(base_model.resolve_base(made.base))}
    folders = {"data": made.dataset} | ({"class_images": made.class_images} if made.class_images else {})
    now |= {
        name: manifest.dataset_fingerprint(load_training_records(folder)) for name, folder in folders.items()
    }
    wrong = [name for name, value in now.items() if inputs[name] != value]
    if wrong:
        raise ConfigError(
            f"not what this run was trained on: {', '.join(wrong)}",
            where=", ".join(str(({"base": made.base} | folders)[name]) for name in wrong),
            remedy="say where the original is now: lorakit reproduce RUN dataset=... base=...",
        )


def compare_runs(run: Path, again: Path) -> ReproductionResult:
    """Compare the finished adapters of two runs."""
    files = [folder / "adapter.safetensors" for folder in (run, again)]
    hashes = [storage.sha256_file(file) for file in files]
    records = [storage.read_json(folder / "run.json") for folder in (run, again)]
    differences = run_folder.record_differences(*records, parts=("versions", "machine"))
    tensors = {}
    if hashes[0] != hashes[1]:
        first, second = (storage.read_safetensors(file) for file in files)
        for name in sorted(first.keys() | second.keys()):
            a, b = first.get(name), second.get(name)
            if a is None or b is None or a.shape != b.shape:
                tensors[name] = float("inf")
            elif not a.equal(b):
                tensors[name] = float((a - b).abs().max())
    return ReproductionResult(hashes[0] == hashes[1], str(files[0]), str(files[1]), tensors, differences)

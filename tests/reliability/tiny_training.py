"""A tiny training that can be stopped anywhere and started again, and the results that must be equal.

Everything that a crash can damage is in one folder: the run (`state/run`) and the cache (`state/cache`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lorakit.training.train
from lorakit.core import checksums, storage
from lorakit.training import checkpoint, sample_sheet
from tests import runs, tiny

STEPS = 20
SAVE_EVERY = 5
KEPT_STATES = 2
BASES = {  # a U-Net and a DiT, and a few of their linear layers
    "sd15": ["attn2.to_q", "attn2.to_v"],
    "sd3-no-t5": ["to_q", "to_v"],
}
UNET, DIT = BASES
RECIPE: dict[str, Any] = {
    "optimizer": {"name": "adamw8bit", "lr": 1e-2},
    "train": {
        "steps": STEPS,
        "batch_size": 1,
        "save_every": SAVE_EVERY,
        "keep_optimizer_states": KEPT_STATES,
        "precision": "fp32",
    },
}
SAMPLES = {"every": 10, "num_inference_steps": 1, "guidance_scale": 1.0}


@dataclass(frozen=True)
class TinyTraining:
    """With `monitored`, prompts are sampled and the validation loss is measured on the way."""

    root: Path
    monitored: bool

    @property
    def recipe(self) -> Path:
        """The recipe file."""
        return self.root / "recipe.json"

    @property
    def state(self) -> Path:
        """The folder that a crash can damage."""
        return self.root / "state"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.state / "run"

    @property
    def cache(self) -> Path:
        """The cache's folder."""
        return self.state / "cache"

    @property
    def output(self) -> Path:
        """The output of the training's processes."""
        return self.root / "output.txt"

    def train(self, *overrides: str) -> tuple[int, str]:
        """Run the command in this process; returns the exit code and the output."""
        output = io.StringIO()
        with contextlib.redirect_stderr(output), cache_at(self.cache):
            code = lorakit.training.train.main([str(self.recipe), *overrides])
        return code, output.getvalue()

    def finished(self) -> Finished:
        """The results of the finished run."""
        rows = storage.read_jsonl(self.run / "metrics.jsonl", torn_tail=True)
        return Finished(
            adapter=(self.run / "adapter.safetensors").read_bytes(),
            rows=[{k: v for k, v in row.items() if k != "step_seconds"} for row in rows],
            checkpoint=self._last_checkpoint(),
            samples={name: data for name, data in _contents(self.run / "samples").items() if "/" in name},
            sheet=self._sheet(),
        )

    def _sheet(self) -> bytes:
        file = self.run / "samples" / sample_sheet.CONTACT_SHEET_FILE
        return file.read_bytes() if file.exists() else b""

    def _last_checkpoint(self) -> dict[str, bytes]:
        """The newest; others may be of other steps, because a signal commits when it arrives."""
        steps = checkpoint.checkpoint_steps(self.run)
        return _contents(checkpoint.step_folder(self.run, steps[-1])) if steps else {}

    def mismatches(self, reference: Finished) -> list[str]:
        """The differences from an uninterrupted run."""
        try:
            record = storage.read_json(self.run / "run.json")
            own = self.finished()
        except Exception as error:
            return [f"unfinished: {error}"]
        problems = [] if record["status"] == "done" else [f"status {record['status']}"]
        if len(committed(self.run)) < KEPT_STATES:
            problems.append("fewer optimizer states than train.keep_optimizer_states")
        for part in ("adapter", "rows", "checkpoint", "samples"):
            one, other = getattr(own, part), getattr(reference, part)
            if one != other:
                files = one.keys() | other.keys() if isinstance(one, dict) else ()
                names = sorted(name for name in files if one.get(name) != other.get(name))
                problems.append(f"other {part} {' '.join(names)}".rstrip())
        return problems

    def outdated_reports(self, reference: Finished) -> list[str]:
        """The report or contact sheet that is missing, or outdated."""
        problems = [] if (self.run / "report.html").is_file() else ["no report.html"]
        return problems if self._sheet() == reference.sheet else [*problems, "an outdated contact sheet"]

    def resumed_from(self) -> int:
        """The step from which the last process resumed, by the log."""
        steps = re.findall(r"resuming from step (\d+)", (self.run / "log.txt").read_text(errors="replace"))
        return int(steps[-1]) if steps else 0

    def delete_run(self) -> None:
        """Delete the run; the cache stays."""
        shutil.rmtree(self.run, ignore_errors=True)

    def copy(self, root: Path) -> TinyTraining:
        """The same training elsewhere, with its cache, before the first start."""
        shutil.copytree(self.cache, root / "state/cache")
        tree = json.loads(self.recipe.read_text()) | {"out": str(root / "state/run")}
        storage.write_json(root / "recipe.json", tree)
        return TinyTraining(root, self.monitored)


@dataclass(frozen=True)
class Finished:
    """A finished run: the adapter's bytes, metrics without durations, files by path, the sheet of samples."""

    adapter: bytes
    rows: list[dict[str, Any]]
    checkpoint: dict[str, bytes]
    samples: dict[str, bytes]
    sheet: bytes


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not storage.is_internal_file(file)
    }


@contextlib.contextmanager
def cache_at(folder: Path) -> Iterator[None]:
    """Use another cache folder in a `with` block."""
    before = os.environ["LORAKIT_CACHE"]
    os.environ["LORAKIT_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ["LORAKIT_CACHE"] = before


def make(root: Path, base: str, *, monitored: bool, **changes: Any) -> TinyTraining:
    """Create a training: four images, one of them held out if `monitored`, and a recipe of 20 steps."""
    data = runs.make_dataset(root / "data", 4)
    prompts = storage.write_jsonl(root / "prompts.jsonl", [{"id": "a", "prompt": "a ring", "seeds": [0]}])
    tree = RECIPE | {"adapter": {"rank": 2, "alpha": 2, "targets": BASES[base]}}
    if monitored:
        tree |= {"samples": {"prompts": str(prompts), **SAMPLES}, "validate": {"fraction": 0.25, "every": 10}}
    for key, value in changes.items():
        tree[key] = tree.get(key, {}) | value if isinstance(value, dict) else value
    runs.make_recipe(root / "recipe.json", tiny.tiny_folder(base), data, root / "state/run", **tree)
    return TinyTraining(root, monitored)


def committed(run: Path) -> list[int]:
    """Steps whose checkpoint is complete, with its optimizer state."""
    names = {step: checkpoint.step_folder(run, step) for step in checkpoint.checkpoint_steps(run)}
    return [step for step, folder in names.items() if checksums.find_folder_damage(folder) is None]

"""A tiny training that can be stopped anywhere and started again, and what must be the same afterwards.

The state that a crash can hurt lies in one folder: the run (`state/run`) and the cache (`state/cache`).
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
from lorakit.core import storage
from lorakit.training import checkpoint
from tests import runs, tiny

STEPS = 20
SAVE_EVERY = 5
KEEP = 2
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
        "keep": KEEP,
        "precision": "fp32",
    },
}
LOOKS = {"every": 10, "steps": 1, "guidance": 1.0}


@dataclass(frozen=True)
class World:
    """`looks`: whether prompts are sampled and held-out images measured on the way."""

    root: Path
    looks: bool

    @property
    def recipe(self) -> Path:
        """The recipe file."""
        return self.root / "recipe.json"

    @property
    def state(self) -> Path:
        """What a crash can hurt."""
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
    def said(self) -> Path:
        """What processes of this world have printed."""
        return self.root / "said.txt"

    def train(self, *overrides: str) -> tuple[int, str]:
        """The command, given once more in this process; returns the exit code and what it said."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said), cache_at(self.cache):
            code = lorakit.training.train.main([str(self.recipe), *overrides])
        return code, said.getvalue()

    def finished(self) -> Finished:
        """What the run has come to."""
        rows = storage.read_jsonl(self.run / "metrics.jsonl", torn_tail=True)
        return Finished(
            adapter=(self.run / "adapter.safetensors").read_bytes(),
            rows=[{k: v for k, v in row.items() if k != "seconds"} for row in rows],
            checkpoint=self._last_checkpoint(),
            samples={name: data for name, data in _contents(self.run / "samples").items() if "/" in name},
            sheet=self._sheet(),
        )

    def _sheet(self) -> bytes:
        file = self.run / "samples/contact.png"
        return file.read_bytes() if file.exists() else b""

    def _last_checkpoint(self) -> dict[str, bytes]:
        """The others may be of other steps: a signal commits when it comes."""
        steps = checkpoint.checkpoint_steps(self.run)
        return _contents(self.run / checkpoint.FOLDER / f"step-{steps[-1]:08d}") if steps else {}

    def mismatches(self, reference: Finished) -> list[str]:
        """What differs from an uninterrupted run; nothing when all is as it must be."""
        try:
            record = storage.read_json(self.run / "run.json")
            mine = self.finished()
        except Exception as error:
            return [f"unfinished: {error}"]
        found = [] if record["status"] == "done" else [f"status {record['status']}"]
        if len(committed(self.run)) < KEEP:
            found.append("fewer checkpoints than are to be kept")
        for part in ("adapter", "rows", "checkpoint", "samples"):
            one, other = getattr(mine, part), getattr(reference, part)
            if one != other:
                files = one.keys() | other.keys() if isinstance(one, dict) else ()
                names = sorted(name for name in files if one.get(name) != other.get(name))
                found.append(f"other {part} {' '.join(names)}".rstrip())
        return found

    def pages_missing(self, reference: Finished) -> list[str]:
        """What is made of a run's files and is not there, or not of the last ones."""
        found = [] if (self.run / "report.html").is_file() else ["no report.html"]
        return found if self._sheet() == reference.sheet else [*found, "an old contact.png"]

    def went_on_from(self) -> int:
        """The step from which the last training started, as the log tells it."""
        found = re.findall(r"going on from step (\d+)", (self.run / "log.txt").read_text(errors="replace"))
        return int(found[-1]) if found else 0

    def forget(self) -> None:
        """Back to before the first start; the cache stays."""
        shutil.rmtree(self.run, ignore_errors=True)

    def copy(self, root: Path) -> World:
        """The same world elsewhere, with its cache, before the first start."""
        shutil.copytree(self.cache, root / "state/cache")
        tree = json.loads(self.recipe.read_text()) | {"out": str(root / "state/run")}
        storage.write_json(root / "recipe.json", tree)
        return World(root, self.looks)


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
    """Put the cache elsewhere for a while."""
    before = os.environ["LORAKIT_CACHE"]
    os.environ["LORAKIT_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ["LORAKIT_CACHE"] = before


def make(root: Path, base: str, *, looks: bool, **changes: Any) -> World:
    """Build a world: four pictures and a recipe of 20 steps; one picture is held out to look at."""
    data = runs.make_dataset(root / "data", 4)
    prompts = storage.write_jsonl(root / "prompts.jsonl", [{"id": "a", "prompt": "a ring", "seeds": [0]}])
    tree = RECIPE | {"adapter": {"rank": 2, "alpha": 2, "targets": BASES[base]}}
    if looks:
        tree |= {"samples": {"prompts": str(prompts), **LOOKS}, "validate": {"fraction": 0.25, "every": 10}}
    for key, value in changes.items():
        tree[key] = tree.get(key, {}) | value if isinstance(value, dict) else value
    runs.make_recipe(root / "recipe.json", tiny.tiny_folder(base), data, root / "state/run", **tree)
    return World(root, looks)


def committed(run: Path) -> list[int]:
    """Steps whose checkpoint is whole."""
    names = {step: run / checkpoint.FOLDER / f"step-{step:08d}" for step in checkpoint.checkpoint_steps(run)}
    return [step for step, folder in names.items() if storage.find_folder_damage(folder) is None]

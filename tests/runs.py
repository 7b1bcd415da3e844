"""Small datasets, recipes and training processes for tests."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lorakit import manifest
from lorakit.config import recipe
from lorakit.core import storage
from lorakit.imaging import decode

# Children are forked from a server that has imported everything once, so that a test can start (and kill)
# many.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "lorakit.training",
        "bitsandbytes",
        "diffusers.pipelines.stable_diffusion",
        "diffusers.pipelines.stable_diffusion_3",
    ]
)


def make_dataset(folder: Path, count: int = 6) -> Path:
    """Noise pictures of three shapes with captions, and their manifest without buckets."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(count):
        width, height = [(64, 64), (96, 64), (64, 96)][index % 3]
        picture = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        file = storage.save_image(folder / f"{index}.png", picture)
        captions = (manifest.Caption(f"a sks picture number {index}", "hand"),)
        records.append(
            manifest.Record(
                file=file.name,
                sha256=storage.sha256_file(file),
                pixels=decode.pixel_hash(picture),
                width=width,
                height=height,
                captions=captions,
            )
        )
    manifest.save_manifest(folder, records)
    return folder


def make_prompts(path: Path) -> Path:
    """Two prompts, three pictures."""
    rows = [
        {"id": "a", "prompt": "a red circle", "seeds": [0, 1]},
        {"id": "b", "prompt": "a ring", "seeds": [0]},
    ]
    return storage.write_jsonl(path, rows)


def make_recipe(path: Path, base: str | Path, dataset: Path, out: Path, /, **changes: Any) -> Path:
    """A recipe of 12 steps that commits every 4; `changes` replace whole top-level keys."""
    tree: dict[str, Any] = {
        "base": str(base),
        "dataset": str(dataset),
        "out": str(out),
        "resolution": 64,
        "adapter": {"rank": 4, "alpha": 8},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 12, "batch_size": 2, "accumulate": 2, "save_every": 4, "precision": "fp32"},
        "export": [],
    }
    return storage.write_json(path, tree | changes)  # JSON is YAML


def train(path: Path, *overrides: str) -> Path:
    """Train in this process; returns the run's folder."""
    from lorakit.training.train import train_recipe

    return train_recipe(recipe.load_recipe(path, list(overrides))).path


def _target(arguments: list[str], environment: dict[str, str]) -> None:
    import os
    import sys

    os.environ.update(environment)
    from lorakit.training.train import main

    sys.exit(main(arguments))


def start(path: Path, *overrides: str, **environment: str) -> Any:
    """Train in a process of its own, which the caller may kill."""
    process = _CONTEXT.Process(target=_target, args=([str(path), *overrides], environment))
    process.start()
    return process


class _Killed(BaseException):
    """What no code of ours catches."""


@contextlib.contextmanager
def killed_at(step: int) -> Iterator[None]:
    """A training inside ends before this step (counted from 0) as a kill would end it, with nothing told."""
    from unittest import mock

    from lorakit.training.trainer import Trainer

    own = Trainer.step

    def stepped(self: Trainer) -> tuple[float, float]:
        if self.state.step == step:
            raise _Killed
        return own(self)

    with mock.patch.object(Trainer, "step", stepped), contextlib.suppress(_Killed):
        yield
        raise AssertionError("it was not killed")


def steps_logged(run: Path) -> int:
    """The last step in metrics.jsonl."""
    file = run / "metrics.jsonl"
    if not file.exists():
        return 0
    lines = [line for line in file.read_bytes().split(b"\n")[:-1] if line]
    return int(json.loads(lines[-1])["step"]) if lines else 0

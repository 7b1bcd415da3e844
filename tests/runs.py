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
from lorakit.config.concepts import Concept
from lorakit.core import checksums, storage
from lorakit.data.items import DatasetItem, load_concepts, plan_items
from lorakit.imaging import decode

# Children are forked from a server that has imported everything once: tests can start and kill many.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "lorakit.training.train",
        "bitsandbytes",
        "diffusers.pipelines.stable_diffusion",
        "diffusers.pipelines.stable_diffusion_3",
    ]
)


def make_dataset(folder: Path, count: int = 6, *, seed: int = 0, trigger: str = "sks") -> Path:
    """Write noise images of three sizes with captions, and their manifest without buckets."""
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        width, height = [(64, 64), (96, 64), (64, 96)][index % 3]
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        file = storage.save_image(folder / f"{index}.png", image)
        captions = (manifest.Caption(f"a {trigger} picture number {index}", "hand"),)
        records.append(
            manifest.Record(
                file=file.name,
                sha256=checksums.sha256_file(file),
                content_hash=decode.pixel_hash(image),
                width=width,
                height=height,
                captions=captions,
            )
        )
    manifest.save_manifest(folder, records)
    return folder


def load_items(folder: Path, resolution: int = 64, **concept: Any) -> list[DatasetItem]:
    """Return the training items of a prepared folder, as a concept with these keys."""
    (data,) = load_concepts([Concept(folder=folder, **concept)])
    return plan_items(data, resolution, 16, 1).items


def make_prompts(path: Path) -> Path:
    """Write two prompts with three seeds in all."""
    rows = [
        {"id": "a", "prompt": "a red circle", "seeds": [0, 1]},
        {"id": "b", "prompt": "a ring", "seeds": [0]},
    ]
    return storage.write_jsonl(path, rows)


def make_recipe(path: Path, base: str | Path, dataset: Path, out: Path, /, **changes: Any) -> Path:
    """Write a recipe of 12 steps with a checkpoint every 4; `changes` replace whole top-level keys."""
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
    """Train in this process and return the folder of the run."""
    from lorakit.training.train import train_recipe

    return train_recipe(recipe.load_recipe(path, list(overrides))).path


def _target(arguments: list[str], environment: dict[str, str]) -> None:
    import os
    import sys

    os.environ.update(environment)
    from lorakit.training import trainer
    from lorakit.training.train import main

    trainer.LOG_SECONDS = 0.0  # the caller sees each step at once, and can kill between any two
    sys.exit(main(arguments))


def start(path: Path, *overrides: str, **environment: str) -> Any:
    """Train in a process of its own, which the caller may kill."""
    process = _CONTEXT.Process(target=_target, args=([str(path), *overrides], environment))
    process.start()
    return process


class _Killed(BaseException):
    """An exception that no code of lorakit catches."""


@contextlib.contextmanager
def killed_at(step: int) -> Iterator[None]:
    """End a training in this block before a step (counted from 0), as abruptly as a kill would."""
    from unittest import mock

    from lorakit.training.step import TrainingStep
    from lorakit.training.step_result import StepResult

    run = TrainingStep.run

    def run_or_die(self: TrainingStep) -> StepResult:
        if self.state.step == step:
            raise _Killed
        return run(self)

    with mock.patch.object(TrainingStep, "run", run_or_die), contextlib.suppress(_Killed):
        yield
        raise AssertionError("it was not killed")


def steps_logged(run: Path) -> int:
    """The last step in metrics.jsonl."""
    file = run / "metrics.jsonl"
    if not file.exists():
        return 0
    lines = [line for line in file.read_bytes().split(b"\n")[:-1] if line]
    return int(json.loads(lines[-1])["step"]) if lines else 0

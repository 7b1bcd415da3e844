"""Checkpoints: the whole state of a run in one folder of safetensors and JSON, visible whole or not at
all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit.core import storage
from lorakit.core.errors import DataError, NumericError
from lorakit.training.run_folder import RunFolder

FOLDER = "checkpoints"
FORMAT = 1
ADAPTER, OPTIMIZER, STATE = "adapter.safetensors", "optimizer.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` optimizer steps; `facts` are plain values (recipe hash, skipped steps, ...)."""

    step: int
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    facts: dict[str, Any]


def save_checkpoint(run: Path, checkpoint: Checkpoint, metadata: Mapping[str, str], *, keep: int) -> Path:
    """Commit a checkpoint, then prune all but the newest `keep`. A non-finite tensor is refused.

    The rows of metrics.jsonl are made durable first: none of a step that is committed may be lost.
    """
    for name, tensor in (checkpoint.adapter | checkpoint.optimizer).items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NumericError(
                "a tensor is not finite; the checkpoint was not written",
                where=name,
                remedy="go on from the last checkpoint with a lower learning rate in a new run",
            )
    state = {"format": FORMAT, "step": checkpoint.step, "facts": checkpoint.facts}
    files = {
        ADAPTER: storage.safetensors_bytes(checkpoint.adapter, metadata),
        OPTIMIZER: storage.safetensors_bytes(checkpoint.optimizer),
        STATE: storage.dump_json(state).encode(),
    }
    storage.fsync_file(RunFolder(run).metrics_file)
    folder = storage.commit_folder(run / FOLDER / f"step-{checkpoint.step:08d}", files)
    for old in checkpoint_steps(run)[:-keep]:
        storage.remove_folder(run / FOLDER / f"step-{old:08d}")
    return folder


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the committed checkpoints, ascending; not verified."""
    folder = run / FOLDER
    names = [_NAME.fullmatch(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in names if match)


def latest_valid_checkpoint(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what is wrong with newer ones.

    None means that there never was one; if there are some and all are damaged, that is a `DataError`: a run
    never starts over by accident.
    """
    problems: list[str] = []
    for step in reversed(checkpoint_steps(run)):
        folder = run / FOLDER / f"step-{step:08d}"
        problem = storage.find_folder_damage(folder, (ADAPTER, OPTIMIZER, STATE))
        if problem is None:
            return load_checkpoint(folder), problems
        problems.append(f"checkpoint {folder.name}: {problem}")
    if problems:
        raise DataError(
            "every checkpoint of this run is damaged: " + "; ".join(problems),
            where=str(run / FOLDER),
            remedy="restore a checkpoint folder from a backup, or start a new run in another folder",
        )
    return None, problems


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint folder."""
    state = storage.read_json(folder / STATE)
    if state["format"] != FORMAT:
        raise DataError(
            f"checkpoint format {state['format']} is not known to this version (it reads {FORMAT})",
            where=str(folder),
            remedy="use the lorakit version that wrote it",
        )
    return Checkpoint(
        state["step"],
        storage.read_safetensors(folder / ADAPTER),
        storage.read_safetensors(folder / OPTIMIZER),
        state["facts"],
    )

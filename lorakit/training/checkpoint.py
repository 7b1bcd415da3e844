"""Checkpoints: the whole state of a run in one folder of safetensors and JSON, committed all or nothing."""

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
from lorakit.training.run_records import ADAPTER_FILE as ADAPTER_FILE
from lorakit.training.run_records import CHECKPOINTS_FOLDER as CHECKPOINTS_FOLDER

FORMAT_VERSION = 1
OPTIMIZER_FILE, STATE_FILE = "optimizer.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` optimizer steps; `state` holds plain values such as skipped steps."""

    step: int
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


@dataclass(frozen=True)
class LatestCheckpoint:
    """The newest valid checkpoint, None if there never was one, and the problems of newer ones."""

    checkpoint: Checkpoint | None
    problems: list[str]


def step_folder(run: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return run / CHECKPOINTS_FOLDER / f"step-{step:08d}"


def save_checkpoint(
    run: Path, checkpoint: Checkpoint, metadata: Mapping[str, str], *, max_checkpoints: int
) -> Path:
    """Commit a checkpoint, then remove all but the newest `max_checkpoints`.

    Rows of metrics.jsonl are made durable first: none of a committed step may be lost. A tensor that is not
    finite is a NumericError.
    """
    for name, tensor in (checkpoint.adapter | checkpoint.optimizer).items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NumericError(
                "a tensor is not finite; the checkpoint was not written",
                where=name,
                remedy="start a new run from the last checkpoint, with a lower learning rate",
            )
    state = {"format_version": FORMAT_VERSION, "step": checkpoint.step, "state": checkpoint.state}
    files = {
        ADAPTER_FILE: storage.safetensors_bytes(checkpoint.adapter, metadata),
        OPTIMIZER_FILE: storage.safetensors_bytes(checkpoint.optimizer),
        STATE_FILE: storage.dump_json(state).encode(),
    }
    storage.fsync_file(RunFolder(run).metrics_file)
    folder = storage.commit_folder(step_folder(run, checkpoint.step), files)
    for old in checkpoint_steps(run)[:-max_checkpoints]:
        storage.remove_folder(step_folder(run, old))
    return folder


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the committed checkpoints, ascending; not verified."""
    folder = run / CHECKPOINTS_FOLDER
    names = [_NAME.fullmatch(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in names if match)


def latest_valid_checkpoint(run: Path) -> LatestCheckpoint:
    """Load the newest checkpoint that verifies.

    If there are checkpoints and all are damaged, that is a `DataError`: a run never starts over by accident.
    """
    problems: list[str] = []
    for step in reversed(checkpoint_steps(run)):
        folder = step_folder(run, step)
        damage = storage.find_folder_damage(folder, (ADAPTER_FILE, OPTIMIZER_FILE, STATE_FILE))
        if damage is None:
            return LatestCheckpoint(load_checkpoint(folder), problems)
        problems.append(f"checkpoint {folder.name}: {damage}")
    if problems:
        raise DataError(
            "every checkpoint of this run is damaged: " + "; ".join(problems),
            where=str(run / CHECKPOINTS_FOLDER),
            remedy="restore a checkpoint folder from a backup, or start a new run in another folder",
        )
    return LatestCheckpoint(None, problems)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint folder; a format of another version of lorakit is a DataError."""
    state = storage.read_json(folder / STATE_FILE)
    if state.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"this version of lorakit cannot read checkpoint format {state.get('format_version')}, only"
            f" {FORMAT_VERSION}",
            where=str(folder),
            remedy="use the lorakit version that wrote it",
        )
    return Checkpoint(
        step=state["step"],
        adapter=storage.read_safetensors(folder / ADAPTER_FILE),
        optimizer=storage.read_safetensors(folder / OPTIMIZER_FILE),
        state=state["state"],
    )

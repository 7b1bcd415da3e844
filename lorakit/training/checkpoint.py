"""Checkpoints: the whole state of a run in one folder of safetensors and JSON, committed all or nothing.

Every checkpoint keeps its adapter. The optimizer states, which are larger, are kept of the newest ones only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit.core import checksums, safetensors_header, storage
from lorakit.core.errors import DataError, NumericError
from lorakit.training.run_folder import RunFolder
from lorakit.training.run_records import ADAPTER_FILE as ADAPTER_FILE
from lorakit.training.run_records import CHECKPOINTS_FOLDER as CHECKPOINTS_FOLDER

FORMAT_VERSION = 3
OPTIMIZER_FILE, STATE_FILE = "optimizer.safetensors", "state.json"
_FILES = (ADAPTER_FILE, OPTIMIZER_FILE, STATE_FILE)
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` optimizer steps; `state` holds plain values such as skipped steps.

    `run_hash` is the hash of the run that it belongs to (`run_identity.run_hash`).
    """

    step: int
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]
    run_hash: str


@dataclass(frozen=True)
class LatestCheckpoint:
    """The newest valid checkpoint, None if there never was one, and the problems of newer ones."""

    checkpoint: Checkpoint | None
    problems: list[str]


def step_folder(run: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return run / CHECKPOINTS_FOLDER / f"step-{step:08d}"


def _diverged_remedy(run: Path) -> str:
    steps = checkpoint_steps(run)
    start = f" and init_from={step_folder(run, steps[-1]) / ADAPTER_FILE}" if steps else ""
    return f"start a new run, in another folder, with a lower optimizer.lr{start}"


def save_checkpoint(run: Path, checkpoint: Checkpoint, metadata: Mapping[str, str]) -> Path:
    """Commit a checkpoint and return its folder.

    Rows of metrics.jsonl are made durable first: none of a committed step may be lost. A tensor that is not
    finite is a NumericError.
    """
    for name, tensor in (checkpoint.adapter | checkpoint.optimizer).items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NumericError(
                "a tensor is not finite; the checkpoint was not written",
                where=name,
                remedy=_diverged_remedy(run),
            )
    state = {
        "format_version": FORMAT_VERSION,
        "step": checkpoint.step,
        "run_hash": checkpoint.run_hash,
        "state": checkpoint.state,
    }
    files = {
        ADAPTER_FILE: safetensors_header.safetensors_bytes(checkpoint.adapter, metadata),
        OPTIMIZER_FILE: safetensors_header.safetensors_bytes(checkpoint.optimizer),
        STATE_FILE: storage.dump_json(state).encode(),
    }
    storage.fsync_file(RunFolder(run).metrics_file)
    return storage.commit_folder(step_folder(run, checkpoint.step), files)


def remove_optimizer_states(run: Path, keep: int) -> list[int]:
    """Remove the optimizer states of all checkpoints but the newest `keep`; return the steps concerned."""
    removed = []
    for step in checkpoint_steps(run)[:-keep]:
        file = step_folder(run, step) / OPTIMIZER_FILE
        if file.exists():
            storage.remove_file(file)
            removed.append(step)
    return removed


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the committed checkpoints, ascending; not verified."""
    folder = run / CHECKPOINTS_FOLDER
    names = [_NAME.fullmatch(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in names if match)


def latest_valid_checkpoint(
    run: Path, run_hashes: Collection[str] | None = None, *, saved_step: int | None = None
) -> LatestCheckpoint:
    """Load the newest checkpoint that verifies and belongs to a run with one of `run_hashes` (None: any).

    `saved_step` is the newest checkpoint that the run has recorded. Raises DataError if there are or were
    checkpoints and none can be used: a run never starts over by accident.
    """
    steps, problems = checkpoint_steps(run), list[str]()
    if saved_step is not None and saved_step not in steps:
        problems.append(f"checkpoint {step_folder(run, saved_step).name} is missing")
    for step in reversed(steps):
        folder = step_folder(run, step)
        if not (folder / OPTIMIZER_FILE).exists() and (folder / ADAPTER_FILE).exists():
            problems.append(f"checkpoint {folder.name} has no optimizer state")
        elif damage := checksums.find_folder_damage(folder, _FILES):
            problems.append(f"checkpoint {folder.name}: {damage}")
        elif (loaded := load_checkpoint(folder)).run_hash not in (run_hashes or (loaded.run_hash,)):
            problems.append(f"checkpoint {folder.name} belongs to another run")
        else:
            return LatestCheckpoint(loaded, problems)
    if problems:
        raise DataError(
            "this run cannot be resumed from any checkpoint: " + "; ".join(problems),
            where=str(run / CHECKPOINTS_FOLDER),
            remedy="restore a checkpoint folder from a backup; or start over with --fresh; or set `init_from`"
            " of a new run to an adapter that is left",
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
    if not isinstance(state["step"], int) or not isinstance(state["state"], dict):
        raise DataError("the state of the checkpoint has impossible values", where=str(folder / STATE_FILE))
    return Checkpoint(
        step=state["step"],
        run_hash=str(state["run_hash"]),
        adapter=storage.read_safetensors(folder / ADAPTER_FILE),
        optimizer=storage.read_safetensors(folder / OPTIMIZER_FILE),
        state=state["state"],
    )

"""Damage to files of a run, and the check that the run survives it."""

from __future__ import annotations

from pathlib import Path

from lorakit.training import checkpoint
from tests.reliability import checks, instants
from tests.reliability.instants import Instant
from tests.reliability.tiny_training import SAVE_EVERY, Finished, TinyTraining

FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json", "files.json")
MODES = ("cut", "flip", "zero", "missing", "empty")


def damage(file: Path, mode: str) -> None:
    """Damage one file in place."""
    data = bytearray(file.read_bytes())
    if mode == "missing":
        file.unlink()
        return
    if mode == "flip":
        data[len(data) * 2 // 3] ^= 0x10
    kept = {"cut": data[: len(data) // 2], "zero": bytes(len(data)), "empty": b""}
    file.write_bytes(kept.get(mode, data))


def laid_out(training: TinyTraining, seen: list[Instant], step: int) -> list[Path]:
    """Restore the disk as it was some steps after the commit of `step`; returns its checkpoint folders."""
    rows = [i for i in seen if i.committed == step and i.path.endswith("metrics.jsonl")]
    instants.lay_out(rows[-2].tree, training.state)
    return [checkpoint.step_folder(training.run, s) for s in checkpoint.checkpoint_steps(training.run)]


def survives(
    training: TinyTraining, reference: Finished, seen: list[Instant], file: str, mode: str
) -> list[str]:
    """Damage a file of the newest checkpoint: the run must fall back, log it, and end in the same bytes."""
    *_, newest = laid_out(training, seen, 3 * SAVE_EVERY)
    damage(newest / file, mode)
    found = checks.finish(training, reference)
    if training.resumed_from() != 2 * SAVE_EVERY:
        found.append(f"resumed from step {training.resumed_from()}")
    log = (training.run / "log.txt").read_text()
    if newest.name not in log or "falling back" not in log:
        found.append("the log does not mention it")
    return [f"{file} {mode}: {line}" for line in found]

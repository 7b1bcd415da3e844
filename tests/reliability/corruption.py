"""Damage to what lies on disk: the modes, and whether a run gets over them."""

from __future__ import annotations

from pathlib import Path

from lorakit.training import checkpoint
from tests.reliability import checks, instants
from tests.reliability.instants import Instant
from tests.reliability.world import SAVE_EVERY, Finished, World

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


def laid_out(made: World, seen: list[Instant], step: int) -> list[Path]:
    """Put the world where it was some steps after the commit of `step`; its checkpoints, newest last."""
    rows = [i for i in seen if i.committed == step and i.path.endswith("metrics.jsonl")]
    instants.lay_out(rows[-2].tree, made.state)
    return [made.run / checkpoint.FOLDER / f"step-{s:08d}" for s in checkpoint.checkpoint_steps(made.run)]


def survives(made: World, reference: Finished, seen: list[Instant], file: str, mode: str) -> list[str]:
    """Damage one file of the newest of two checkpoints: the run must fall back, say so, and end as ever."""
    *_, newest = laid_out(made, seen, 3 * SAVE_EVERY)
    damage(newest / file, mode)
    found = checks.finish(made, reference)
    if made.went_on_from() != 2 * SAVE_EVERY:
        found.append(f"went on from step {made.went_on_from()}")
    log = (made.run / "log.txt").read_text()
    if newest.name not in log or "falling back" not in log:
        found.append("it does not say so")
    return [f"{file} {mode}: {line}" for line in found]

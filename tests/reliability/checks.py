"""The checkers: each returns the problems that it finds, one a line; none for a correct lorakit.

They are plain functions so that `test_mutations` can show that they notice a missing safety measure.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from lorakit.core import checksums, storage
from lorakit.training import checkpoint
from tests.reliability import instants, power_cut
from tests.reliability.instants import Instant
from tests.reliability.tiny_training import Finished, TinyTraining

# A whole run


def resume(training: TinyTraining, reference: Finished, instant: Instant) -> list[str]:
    """Restore the disk that a crash left, start again, and compare the end."""
    instants.lay_out(instant.tree, training.state)
    return [f"{instant}: {line}" for line in finish(training, reference, at_least=instant.committed)]


def finish(training: TinyTraining, reference: Finished, *, at_least: int = 0) -> list[str]:
    """Run the command again; it must resume from step `at_least` or a later one."""
    code, output = training.train()
    if code:
        return [f"exit code {code}: {output.strip()[-300:]}"]
    problems = training.mismatches(reference)
    if "this run is finished" not in output and training.resumed_from() < at_least:
        problems.append(f"resumed from step {training.resumed_from()}, not from {at_least}")
    return problems


def resumes(training: TinyTraining, reference: Finished, crashed: Iterable[Instant]) -> list[str]:
    """Check `resume` from each of many instants."""
    return [line for instant in crashed for line in resume(training, reference, instant)]


# Checkpoints alone: a run's folder without a training, so that every instant of it can be checked


def make_checkpoint(step: int) -> checkpoint.Checkpoint:
    """A checkpoint whose tensors hold its step."""
    return checkpoint.Checkpoint(
        step,
        {"unet.a.lora_A.weight": torch.full((2, 3), float(step))},
        {"a|state1": torch.arange(6, dtype=torch.uint8) + step, "a|step": torch.tensor(step)},
        {"skipped_steps": []},
        "run",
    )


def write_steps(run: Path, first: int, last: int, keep: int) -> None:
    """Write what a run writes at each step: a row, and a checkpoint at every second one."""
    for step in range(first, last + 1):
        storage.append_jsonl(run / "metrics.jsonl", {"step": step})
        if step % 2 == 0:
            checkpoint.save_checkpoint(run, make_checkpoint(step), {"format": "pt"})
            checkpoint.remove_optimizer_states(run, keep)


def commits(root: Path, keep: int) -> list[str]:
    """Write three checkpoints, stopped by a crash or a power cut at every operation: the last committed one,
    or a later one, must be left, with all rows up to it, and it must be possible to resume from it."""
    with power_cut.following(root / "first") as disk:
        write_steps(root / "first/run", 1, 6, keep)
    problems = protocol(disk.instants)
    for kind, seen in (("crash", disk.instants), ("power cut", disk.cuts)):
        for instant in instants.distinct(seen):
            instants.lay_out(instant.tree, root / "again")
            problems += [
                f"{kind} {instant}: {line}" for line in _problems_of(root / "again/run", instant, keep)
            ]
    return problems


def _problems_of(run: Path, instant: Instant, keep: int) -> list[str]:
    try:
        saved = checkpoint.latest_valid_checkpoint(run).checkpoint
        step = saved.step if saved else 0
        if step < instant.committed:
            return [f"step {instant.committed} was committed, {step} is left"]
        if saved and not saved.adapter["unet.a.lora_A.weight"].eq(step).all():
            return [f"step {step} has the tensors of another step"]
        file = run / "metrics.jsonl"
        rows = storage.read_jsonl(file, torn_tail=True) if file.exists() else []
        if [row["step"] for row in rows[:step]] != list(range(1, step + 1)):
            return [f"rows up to step {step} are missing"]
        write_steps(run, step + 1, 8, keep)
        latest = checkpoint.latest_valid_checkpoint(run)
        complete = latest.checkpoint and latest.checkpoint.step == 8 and not latest.problems
        return [] if complete else ["cannot be resumed"]
    except Exception as error:
        return [f"refused: {error}"]


def protocol(seen: list[Instant]) -> list[str]:
    """Check the order of a commit: every file written and synced, the checksums last, the folder renamed, old
    optimizer states removed. (Power cuts show that the folder and its parent are synced.)"""
    problems, folder, written, pending = [], "", list[str](), 0
    for instant in seen:
        parent, _, name = instant.path.rpartition("/")
        if instant.name == "write" and "checkpoints/" in parent:
            folder, pending = parent, pending + 1
            written.append(name)
        elif instant.name == "sync" and parent == folder:
            pending -= 1
        elif instant.name == "rename" and "/step-" in instant.path:
            if pending or not written or written[-1] != checksums.CHECKSUMS_FILE:
                problems.append(f"{instant}: {pending} files not synced, the last one is {written[-1:]}")
            folder, written, pending = "", [], 0
        elif instant.name == "remove" and written:
            problems.append(f"{instant}: removed before the new one was committed")
    return problems


def rewritten(root: Path) -> list[str]:
    """Replace a file such as run.json: at every instant the old one or the new one must be there."""
    file = storage.write_json(root / "first/run/run.json", {"status": "running"})
    with power_cut.following(root / "first") as disk:
        storage.write_json(file, {"status": "done"})
    problems = []
    for instant in [*instants.distinct(disk.instants), *instants.distinct(disk.cuts)]:
        instants.lay_out(instant.tree, root / "again")
        try:
            storage.read_json(root / "again/run/run.json")
        except Exception as error:
            problems.append(f"{instant}: {error}")
    return problems

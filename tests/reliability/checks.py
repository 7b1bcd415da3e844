"""The checkers: each returns what is wrong, as lines; an empty list is what a sound lorakit gives.

They are plain functions so that `test_mutations` can show that they notice when a safety line is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from lorakit.core import storage
from lorakit.training import checkpoint
from tests.reliability import instants, power_cut
from tests.reliability.instants import Instant
from tests.reliability.world import Finished, World

# A whole run


def resume(made: World, reference: Finished, instant: Instant) -> list[str]:
    """Lay out what a crash left, start again, compare the end."""
    instants.lay_out(instant.tree, made.state)
    return [f"{instant}: {line}" for line in finish(made, reference, at_least=instant.committed)]


def finish(made: World, reference: Finished, *, at_least: int = 0) -> list[str]:
    """Give the command once more; the run must go on from step `at_least` or a later one."""
    code, said = made.train()
    if code:
        return [f"exit code {code}: {said.strip()[-300:]}"]
    found = made.mismatches(reference)
    if "this run is finished" not in said and made.went_on_from() < at_least:
        found.append(f"went on from step {made.went_on_from()}, not from {at_least}")
    return found


def resumes(made: World, reference: Finished, crashed: Iterable[Instant]) -> list[str]:
    """`resume` from each of many instants."""
    return [line for instant in crashed for line in resume(made, reference, instant)]


# Commits alone: a run's folder without a training, so that every instant of it can be looked at


def make_checkpoint(step: int) -> checkpoint.Checkpoint:
    """A checkpoint whose content tells its step."""
    return checkpoint.Checkpoint(
        step,
        {"unet.a.lora_A.weight": torch.full((2, 3), float(step))},
        {"a|state1": torch.arange(6, dtype=torch.uint8) + step, "a|step": torch.tensor(step)},
        {"skipped": []},
    )


def do_steps(run: Path, first: int, last: int, keep: int) -> None:
    """What a run writes from step to step: a row, and a checkpoint at every second one."""
    for step in range(first, last + 1):
        storage.append_jsonl(run / "metrics.jsonl", {"step": step})
        if step % 2 == 0:
            checkpoint.save_checkpoint(run, make_checkpoint(step), {"format": "pt"}, keep=keep)


def commits(root: Path, keep: int) -> list[str]:
    """Three commits, stopped by a crash or a power cut at every operation: what is left must be the last
    commit, or a later one, with all rows up to it, and must be something to go on from."""
    with power_cut.following(root / "first") as disk:
        do_steps(root / "first/run", 1, 6, keep)
    problems = protocol(disk.instants)
    for kind, seen in (("crash", disk.instants), ("power cut", disk.cuts)):
        for instant in instants.distinct(seen):
            instants.lay_out(instant.tree, root / "again")
            problems += [f"{kind} {instant}: {line}" for line in _left(root / "again/run", instant, keep)]
    return problems


def _left(run: Path, instant: Instant, keep: int) -> list[str]:
    try:
        found, _ = checkpoint.latest_valid_checkpoint(run)
        step = found.step if found else 0
        if step < instant.committed:
            return [f"step {instant.committed} was committed, {step} is left"]
        if found and not found.adapter["unet.a.lora_A.weight"].eq(step).all():
            return [f"step {step} holds something else"]
        file = run / "metrics.jsonl"
        rows = storage.read_jsonl(file, torn_tail=True) if file.exists() else []
        if [row["step"] for row in rows[:step]] != list(range(1, step + 1)):
            return [f"rows up to step {step} are missing"]
        do_steps(run, step + 1, 8, keep)
        after, problems = checkpoint.latest_valid_checkpoint(run)
        return [] if after and after.step == 8 and not problems else ["cannot go on"]
    except Exception as error:
        return [f"refused: {error}"]


def protocol(seen: list[Instant]) -> list[str]:
    """The order of a commit: every file written and synced, the manifest last, the folder renamed; old
    checkpoints go after that. (That the folder and its parent are synced, the power cuts show.)"""
    problems, folder, written, pending = [], "", list[str](), 0
    for instant in seen:
        parent, _, name = instant.path.rpartition("/")
        if instant.name == "write" and "checkpoints/" in parent:
            folder, pending = parent, pending + 1
            written.append(name)
        elif instant.name == "sync" and parent == folder:
            pending -= 1
        elif instant.name == "rename" and "/step-" in instant.path:
            if pending or not written or written[-1] != storage.CHECKSUMS_FILE:
                problems.append(f"{instant}: {pending} files not synced, the last one is {written[-1:]}")
            folder, written, pending = "", [], 0
        elif instant.name == "remove" and written:
            problems.append(f"{instant}: removed before the new one was committed")
    return problems


def rewritten(root: Path) -> list[str]:
    """A file that is replaced, such as run.json: at every instant the old one or the new one is there."""
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

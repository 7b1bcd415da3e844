"""Every instant of a run: the disk just before each file-system operation, and in the middle of it.

SIGKILL keeps the page cache, so a killed process leaves the files that its folder had at that moment. A run
is recorded once, and each instant can be restored later.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorakit.core import storage
from lorakit.training import run_folder

Tree = dict[str, bytes | None]
"""Files by their path below the state's folder; None is a folder."""


@dataclass(frozen=True)
class Instant:
    """The disk before the `number`-th operation (`torn`: in the middle of the one before)."""

    number: int
    name: str
    path: str
    tree: Tree
    committed: int
    torn: bool = False

    def __str__(self) -> str:
        return f"{'within' if self.torn else 'before'} operation {self.number} ({self.name} {self.path})"


def capture(root: Path) -> Tree:
    """Everything below a folder."""
    if not root.is_dir():
        return {}
    entries = sorted(root.rglob("*"))
    return {str(e.relative_to(root)): None if e.is_dir() else e.read_bytes() for e in entries}


def lay_out(tree: Tree, root: Path) -> None:
    """Make a folder hold just this."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        if content is None:
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)


class Recorder:
    """Records the instants of all operations below `root`, as `storage.io_hook`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.instants: list[Instant] = []
        self._pool: dict[bytes, bytes] = {}
        self._committed = 0

    def __call__(self, name: str, path: Path) -> None:
        if path.is_relative_to(self.root):
            relative = str(path.relative_to(self.root))
            self._note_commit()
            self.instants.append(
                Instant(len(self.instants), name, relative, self._captured(), self._committed)
            )

    def _captured(self) -> Tree:
        tree = capture(self.root)
        return {n: c if c is None else self._pool.setdefault(c, c) for n, c in tree.items()}

    def _note_commit(self) -> None:
        """A checkpoint is promised from the moment that its folder's parent is synced."""
        last = self.instants[-1] if self.instants else None
        if last and last.name == "sync_folder" and last.path.endswith("/checkpoints"):
            steps = [int(n[-8:]) for n in last.tree if "/checkpoints/step-" in n and n[-8:].isdigit()]
            self._committed = max([self._committed, *steps])

    def end(self) -> None:
        """Add the disk at the end."""
        self._note_commit()
        tree = self._captured()
        self.instants.append(Instant(len(self.instants), "end", "", tree, self._committed))


@contextlib.contextmanager
def recording(root: Path) -> Iterator[Recorder]:
    """Record the operations below a folder in a `with` block. Heartbeats come only with a new phase there, so
    that the operations of two runs are the same ones."""
    recorder = Recorder(root)
    before, every = storage.io_hook, run_folder.HEARTBEAT_EVERY
    storage.io_hook, run_folder.HEARTBEAT_EVERY = recorder, float("inf")
    try:
        yield recorder
    finally:
        storage.io_hook, run_folder.HEARTBEAT_EVERY = before, every
    recorder.end()


def torn(before: Instant, after: Instant) -> Instant | None:
    """The middle of the operation before which `before` was taken: half a file written, half appended, half a
    folder removed. None when the operation has no middle."""
    tree = dict(before.tree)
    new = after.tree.get(before.path)
    if before.name in ("write", "append") and new is not None:
        old = (tree.get(before.path) or b"") if before.name == "append" else b""
        tree[before.path] = new[: len(old) + (len(new) - len(old)) // 2]
    elif before.name == "remove":
        inside = [n for n, c in tree.items() if n.startswith(f"{before.path}/") and c is not None]
        for name in inside[: len(inside) // 2]:
            del tree[name]
    else:
        return None
    return Instant(before.number, before.name, before.path, tree, before.committed, torn=True)


def distinct(instants: list[Instant], *, fold: bool = False) -> list[Instant]:
    """Each different content of the disk once, the torn ones included, in their order; the log, which nothing
    reads, aside.

    `fold` treats contents as equal that differ only in lorakit's incomplete internal files, and keeps the
    one with most of those.
    """
    every = []
    for here, following in zip(instants, instants[1:] + instants[-1:], strict=True):
        middle = torn(here, following)
        every += [here, middle] if middle else [here]
    kept: dict[tuple[object, int], Instant] = {}
    for instant in every:
        tree = {name: data for name, data in instant.tree.items() if not name.endswith("log.txt")}
        mark = (frozenset(item for item in tree.items() if not (fold and hidden(item[0]))),)
        key = (mark, instant.committed)
        if key not in kept or len(instant.tree) >= len(kept[key].tree):
            kept[key] = instant
    return list(kept.values())


def at_the_end(instant: Instant) -> bool:
    """True if run.json already says that the run is done."""
    return b'"status": "done"' in (instant.tree.get("run/run.json") or b"")


def hidden(name: str) -> bool:
    """True if a path is, or is inside, an internal file of lorakit's storage."""
    return any(storage.is_internal_file(Path(part)) for part in Path(name).parts)


_RANDOM_NAME = r"^(\.partial-)\d+-[0-9a-f]{8}$"


def plain(tree: Tree) -> Tree:
    """The tree without the differences between two equal processes: their ids, and durations."""
    names: dict[str, str] = {}
    for name in tree:
        parts = [re.sub(_RANDOM_NAME, r"\1", part) for part in name.split("/")]
        names[name] = "/".join(parts)
    return {names[name]: None if content is None else _timeless(content) for name, content in tree.items()}


def _timeless(content: bytes) -> bytes:
    page = b"<!doctype html>"
    if content.startswith(page):  # with a curve of the durations
        return page
    content = re.sub(rb'"(pid|step_seconds|seconds_left)": [0-9.]+|done in [0-9:]+', b"", content)
    content = re.sub(rb"(?m)^[0-9:]+( s)?: ", b"", content)  # of a phase in the log
    return re.sub(rb'"report.html": \{[^}]*\}', b"", content)  # the hash of that page

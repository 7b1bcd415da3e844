"""A disk that keeps only synced data, and the worst states that it can have after a power cut.

A file's content is durable only as far as an `fsync` of that file has seen it; a name in a folder, only as an
`fsync` of that folder has seen it. What was not synced may have reached the disk or not, each thing by itself
and in any order: a new name without its content, content without its name, zeros where data should be. Only a
rename within one folder is taken for atomic, as it is on every file system with a journal.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from lorakit.core import storage
from lorakit.training import run_folder
from tests.reliability.instants import Instant, Recorder, Tree

Listing = dict[str, int]
"""A folder's entries: name -> inode."""


class Disk(Recorder):
    """Follows the data that every `os.fsync` below `root` makes durable; `cuts` are states after a cut.

    Each inode that was seen is held open, so that its number is never used again.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.cuts: list[Instant] = []
        self._held: dict[int, int] = {}
        self._listings: dict[int, Listing] = {}
        self._contents: dict[int, bytes] = {}
        root.mkdir(parents=True, exist_ok=True)
        self._root = self._hold(root)
        self._look_around()
        for inode in self._held:  # the initial content is durable
            self._make_durable(inode)

    def sync(self, handle: int) -> None:
        """Replaces `os.fsync`."""
        inode = os.fstat(handle).st_ino
        if inode not in self._held:
            self._hold(Path(f"/proc/self/fd/{handle}"))
        self._make_durable(inode)

    def __call__(self, name: str, path: Path) -> None:
        before = len(self.instants)
        super().__call__(name, path)
        if len(self.instants) > before:
            self._cut(self.instants[-1])

    def end(self) -> None:
        """Add the disk at the end."""
        super().end()
        self._cut(self.instants[-1])
        for handle in self._held.values():
            os.close(handle)

    def _hold(self, path: Path) -> int:
        handle = os.open(path, os.O_RDONLY)
        inode = os.fstat(handle).st_ino
        self._held[inode] = handle
        return inode

    def _look_around(self) -> None:
        for path in [*self.root.rglob("*")]:
            if path.stat().st_ino not in self._held:
                self._hold(path)

    def _is_folder(self, inode: int) -> bool:
        return stat.S_ISDIR(os.fstat(self._held[inode]).st_mode)

    def _make_durable(self, inode: int) -> None:
        if self._is_folder(inode):
            self._listings[inode] = self._listing(inode)
        else:
            self._contents[inode] = self._content(inode)

    def _listing(self, inode: int) -> Listing:
        with os.scandir(self._held[inode]) as entries:
            return {entry.name: entry.inode() for entry in entries}

    def _content(self, inode: int) -> bytes:
        handle = self._held[inode]
        return os.pread(handle, os.fstat(handle).st_size, 0)

    # states after a power cut

    def _cut(self, instant: Instant) -> None:
        self._look_around()
        for tree in self._worst():
            pooled = {n: c if c is None else self._pool.setdefault(c, c) for n, c in tree.items()}
            self.cuts.append(replace(instant, tree=pooled))

    def _worst(self) -> Iterator[Tree]:
        folders = [inode for inode in self._held if self._is_folder(inode)]
        now = {inode: self._listing(inode) for inode in folders}
        kept = {inode: self._listings.get(inode, {}) for inode in folders}
        for listings in (kept, now):
            for content in (self._synced, self._zeros, self._hole, self._content):
                yield self._tree(listings, content)
        changed = [inode for inode in folders if now[inode] != kept[inode]]
        for inode in changed:
            yield self._tree(kept | {inode: now[inode]}, self._synced)  # only this folder's names arrived
            yield self._tree(now | {inode: kept[inode]}, self._synced)  # only they did not
            for listing in _partly(kept[inode], now[inode]):
                yield self._tree(kept | {inode: listing}, self._synced)
                yield self._tree(now | {inode: listing}, self._synced)

    def _synced(self, inode: int) -> bytes:
        return self._contents.get(inode, b"")

    def _zeros(self, inode: int) -> bytes:
        """The length has arrived, the data has not."""
        synced, now = self._synced(inode), self._content(inode)
        return synced + bytes(max(0, len(now) - len(synced)))

    def _hole(self, inode: int) -> bytes:
        """The end has arrived, the data before it has not."""
        synced, now = self._synced(inode), self._content(inode)
        middle = (len(synced) + len(now)) // 2
        return synced + bytes(max(0, middle - len(synced))) + now[max(middle, len(synced)) :]

    def _tree(self, listings: dict[int, Listing], content: Callable[[int], bytes]) -> Tree:
        tree: Tree = {}

        def walk(inode: int, prefix: str) -> None:
            for name, below in listings[inode].items():
                if below in listings:
                    tree[prefix + name] = None
                    walk(below, f"{prefix}{name}/")
                else:
                    tree[prefix + name] = content(below)

        walk(self._root, "")
        return tree


def _partly(before: Listing, after: Listing) -> Iterator[Listing]:
    """The folder with each one of several changes alone; the names of one inode change together."""
    names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    groups: list[set[str]] = []
    for name in sorted(names):
        inodes = {before.get(name), after.get(name)} - {None}
        touching = [g for g in groups if any({before.get(n), after.get(n)} & inodes for n in g)]
        groups = [g for g in groups if g not in touching] + [{name}.union(*touching)]
    if len(groups) > 1:
        for group in groups:
            yield {
                name: (after if name in group else before)[name]
                for name in before.keys() | after.keys()
                if name in (after if name in group else before)
            }


@contextlib.contextmanager
def following(root: Path) -> Iterator[Disk]:
    """Follow the operations below a folder in a `with` block; nothing is really synced there."""
    disk = Disk(root)
    before = storage.io_hook, os.fsync, run_folder.HEARTBEAT_EVERY
    storage.io_hook, os.fsync, run_folder.HEARTBEAT_EVERY = disk, disk.sync, float("inf")
    try:
        yield disk
    finally:
        storage.io_hook, os.fsync, run_folder.HEARTBEAT_EVERY = before
    disk.end()

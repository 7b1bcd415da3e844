"""Images that are the same picture: exactly (decoded pixels) or nearly (perceptual hash, also mirrored)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lorakit.manifest import Record

# Hashes that differ in at most this many of 64 bits. Measured on 158 photos: recall .99 for resizing, JPEG
# and a 5 % crop, .70 for a 10 % crop, one false pair in 12,403. Pairs grow with the square of the images, so
# large sets are held to closer hashes, or chance would join half of them into one cluster.
MAX_HAMMING_DISTANCE = 10
_DISTANCE_BY_SIZE = ((100_000, 4), (30_000, 6), (5_000, 8))  # from so many images, so many bits
_PAIRS_PER_BLOCK = 4_000_000  # comparisons at a time: 32 MB


@dataclass(frozen=True)
class Cluster:
    """Images that show one picture; `mirrored` when at least one pair is a mirror image."""

    files: tuple[str, ...]
    exact: bool
    mirrored: bool = False


def find_exact_duplicates(records: Sequence[Record]) -> list[Cluster]:
    """Groups of kept images whose decoded pixels are equal."""
    groups: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.keep and record.pixels:
            groups[record.pixels].append(record.file)
    return sorted((Cluster(tuple(files), True) for files in groups.values() if len(files) > 1), key=_sort_key)


def find_near_duplicates(records: Sequence[Record]) -> list[Cluster]:
    """Groups of kept images linked by nearly equal hashes, exact duplicates counted once."""
    first = {record.pixels: record for record in reversed(records) if record.keep and record.phash}
    unique = sorted(first.values(), key=lambda record: record.file)
    bits = next((few for count, few in _DISTANCE_BY_SIZE if len(unique) >= count), MAX_HAMMING_DISTANCE)
    parent = list(range(len(unique)))
    flipped: set[int] = set()

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for one, other, mirrored in _near_pairs([record.phash or "" for record in unique], bits):
        parent[root(other)] = root(one)
        if mirrored:
            flipped |= {one, other}
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(len(unique)):
        members[root(index)].append(index)
    clusters = [
        Cluster(tuple(unique[i].file for i in group), False, any(i in flipped for i in group))
        for group in members.values()
        if len(group) > 1
    ]
    return sorted(clusters, key=_sort_key)


# What folders of a dataset are called after the use that they are kept for.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def dataset_split(file: str) -> str | None:
    """train, validation or test, when a folder on the file's way is called so."""
    parts = file.casefold().split("/")[:-1]
    return next((_SPLITS[part] for part in parts if part in _SPLITS), None)


def find_split_leaks(clusters: Iterable[Cluster]) -> list[tuple[Cluster, tuple[str, ...]]]:
    """The clusters whose images lie in several splits, with these: what is measured on one was learnt in
    another."""
    found = []
    for cluster in clusters:
        splits = tuple(sorted({split for file in cluster.files if (split := dataset_split(file))}))
        if len(splits) > 1:
            found.append((cluster, splits))
    return found


def _near_pairs(hashes: Sequence[str], bits: int) -> Iterator[tuple[int, int, bool]]:
    """(i, j, mirrored) with i < j for every near pair."""
    plain = np.array([int(text[:16], 16) for text in hashes], np.uint64)
    mirror = np.array([int(text[16:], 16) for text in hashes], np.uint64)
    height = max(1, _PAIRS_PER_BLOCK // max(1, len(plain)))
    for start in range(0, len(plain), height):
        rows = plain[start : start + height, None]
        for mirrored, others in ((False, plain), (True, mirror)):
            close = np.bitwise_count(rows ^ others[None, start:]) <= bits
            for i, j in zip(*np.nonzero(close), strict=True):
                if i < j:
                    yield start + int(i), start + int(j), mirrored


def _sort_key(cluster: Cluster) -> tuple[str, ...]:
    return cluster.files

"""Duplicate images: exact (equal pixels) or near (similar perceptual hash, also mirrored)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_tools.color_comparison import Confirm
from lorakit.imaging import near_duplicates
from lorakit.manifest import Record


@dataclass(frozen=True)
class Cluster:
    """Images that are duplicates of each other; `mirrored` if at least one pair is mirrored."""

    files: tuple[str, ...]
    exact: bool
    mirrored: bool = False


def find_exact_duplicates(records: Sequence[Record]) -> list[Cluster]:
    """Return groups of kept images whose decoded pixels are equal."""
    groups: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.keep and record.content_hash:
            groups[record.content_hash].append(record.file)
    return sorted((Cluster(tuple(files), True) for files in groups.values() if len(files) > 1), key=_sort_key)


def find_near_duplicates(records: Sequence[Record], confirm: Confirm | None = None) -> list[Cluster]:
    """Return groups of kept images linked by similar hashes; of exact duplicates, only one is compared.

    `confirm` compares the two images themselves, because hashes do not know colors.
    """
    first = {record.content_hash: record for record in reversed(records) if record.keep and record.phash}
    unique = sorted(first.values(), key=lambda record: record.file)
    pairs = [
        (one, other, mirrored)
        for one, other, mirrored in near_duplicates.near_pairs([record.phash or "" for record in unique])
        if confirm is None or confirm(unique[one], unique[other], mirrored)
    ]
    mirrored_indices = {index for one, other, mirrored in pairs if mirrored for index in (one, other)}
    groups = near_duplicates.connected_groups(len(unique), [(one, other) for one, other, _ in pairs])
    clusters = [
        Cluster(tuple(unique[i].file for i in group), False, any(i in mirrored_indices for i in group))
        for group in groups
        if len(group) > 1
    ]
    return sorted(clusters, key=_sort_key)


# Folder names that mark a split of the dataset.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def dataset_split(file: str) -> str | None:
    """Return train, validation or test if a folder in the file's path has such a name."""
    parts = file.casefold().split("/")[:-1]
    return next((_SPLITS[part] for part in parts if part in _SPLITS), None)


def find_split_leaks(clusters: Iterable[Cluster]) -> list[tuple[Cluster, tuple[str, ...]]]:
    """Return the clusters whose images are in several splits, each with these splits."""
    leaks = []
    for cluster in clusters:
        splits = tuple(sorted({split for file in cluster.files if (split := dataset_split(file))}))
        if len(splits) > 1:
            leaks.append((cluster, splits))
    return leaks


def _sort_key(cluster: Cluster) -> tuple[str, ...]:
    return cluster.files

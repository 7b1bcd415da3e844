"""Duplicate images: exact (equal pixels) or near (similar perceptual hash, also mirrored)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_tools.color_comparison import Confirm
from lorakit.imaging import near_duplicates
from lorakit.manifest import Record

_PAIRS_AT_A_TIME = 512  # compared in color: 25 MB


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

    `confirm` compares the two images themselves, because hashes do not know colors. Images that are in one
    group already are not compared, so that a thousand copies need a thousand comparisons and not a million.
    """
    first = {record.content_hash: record for record in reversed(records) if record.keep and record.phash}
    unique = sorted(first.values(), key=lambda record: record.file)
    groups = near_duplicates.Groups(len(unique))
    mirrored_indices: set[int] = set()
    roots = groups.roots()
    for ones, others, mirrored in near_duplicates.near_pair_arrays([r.phash or "" for r in unique]):
        for start in range(0, len(ones), _PAIRS_AT_A_TIME):
            one, other = (indices[start : start + _PAIRS_AT_A_TIME] for indices in (ones, others))
            apart = roots[one] != roots[other]
            pairs = list(zip(one[apart].tolist(), other[apart].tolist(), strict=True))
            images = [(unique[i], unique[j]) for i, j in pairs]
            confirmed = confirm(images, mirrored) if confirm and pairs else [True] * len(pairs)
            links = [pair for pair, is_same in zip(pairs, confirmed, strict=True) if is_same]
            for i, j in links:
                groups.join(i, j)
                mirrored_indices.update((i, j) if mirrored else ())
            roots = groups.roots() if links else roots
    clusters = [
        Cluster(tuple(unique[i].file for i in group), False, any(i in mirrored_indices for i in group))
        for group in groups.members()
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

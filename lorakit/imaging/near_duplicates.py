"""Near duplicates: images with similar perceptual hashes, also mirrored."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# Bits of 64 that may differ. Measured on 158 photos: recall .99 for resizing, JPEG and a 5 % crop, .70 for a
# 10 % crop, one false pair in 12,403. The number of pairs grows with the square of the number of images, so
# large sets need closer hashes; otherwise chance would join half of them into one cluster.
MAX_HAMMING_DISTANCE = 10
_DISTANCE_BY_SIZE = ((100_000, 4), (30_000, 6), (5_000, 8))  # (number of images, max_distance)
Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]


def near_pairs(hashes: Sequence[str]) -> Iterator[tuple[int, int, bool]]:
    """Yield (i, j, mirrored) with i < j for every pair of similar images.

    A hash has 16 hexadecimal digits of the image and 16 of its mirror image.
    """
    for rows, others, mirrored in near_pair_arrays(hashes):
        for i, j in zip(rows.tolist(), others.tolist(), strict=True):
            yield i, j, mirrored


def near_pair_arrays(hashes: Sequence[str]) -> Iterator[tuple[Indices, Indices, bool]]:
    """Yield the pairs of `near_pairs` as arrays of i and of j; the mirrored ones come last."""
    max_distance = next(
        (few for count, few in _DISTANCE_BY_SIZE if len(hashes) >= count), MAX_HAMMING_DISTANCE
    )
    plain = np.array([int(text[:16], 16) for text in hashes], np.uint64)
    mirror = np.array([int(text[16:], 16) for text in hashes], np.uint64)
    for mirrored, others in ((False, plain), (True, mirror)):
        for rows, columns in _close_pairs(plain, others, max_distance):
            yield rows, columns, mirrored


def _close_pairs(first: Hashes, second: Hashes, max_distance: int) -> Iterator[tuple[Indices, Indices]]:
    """Yield i and j, i < j, of hashes first[i] and second[j] that differ in at most `max_distance` bits.

    Of n parts of two such hashes, 2 n above `max_distance`, at least one part differs in at most one bit:
    only hashes with such a part are compared, which takes time in proportion to the number of hashes.
    """
    num_parts = max_distance // 2 + 1
    borders = [64 * number // num_parts for number in range(num_parts + 1)]
    masks = [(1 << end) - (1 << start) for start, end in itertools.pairwise(borders)]
    for number, (shift, end_bit) in enumerate(itertools.pairwise(borders)):
        width, mask = end_bit - shift, masks[number]
        parts = [
            ((hashes & np.uint64(mask)) >> np.uint64(shift)).astype(np.int64) for hashes in (first, second)
        ]
        order = np.argsort(parts[1], kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(parts[1], minlength=1 << width))])
        for flip in (0, *(1 << bit for bit in range(width))):
            part = parts[0] ^ flip
            position, end = starts[part], starts[part + 1]
            rows = np.flatnonzero(position < end)
            while len(rows):
                columns = order[position[rows]]
                difference = first[rows] ^ second[columns]
                close = (rows < columns) & (np.bitwise_count(difference) <= max_distance)
                for earlier in masks[:number]:  # a pair that an earlier part has found
                    close &= np.bitwise_count(difference & np.uint64(earlier)) > 1
                if close.any():
                    yield rows[close], columns[close]
                position[rows] += 1
                rows = rows[position[rows] < end[rows]]


def connected_groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the indices below `count` in groups that the pairs connect, each in order."""
    groups = Groups(count)
    for one, other in pairs:
        groups.join(one, other)
    return groups.members()


class Groups:
    """Groups of the indices below `count`, each index alone at first."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, index: int) -> int:
        """Return the index that stands for the group of an index."""
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(self, one: int, other: int) -> None:
        """Make one group of the groups of two indices."""
        self._parent[self.root(other)] = self.root(one)

    def roots(self) -> Indices:
        """Return the index that stands for the group of each index."""
        return np.array([self.root(index) for index in range(len(self._parent))], np.int64)

    def members(self) -> list[list[int]]:
        """Return the groups, each in order."""
        members: dict[int, list[int]] = defaultdict(list)
        for index in range(len(self._parent)):
            members[self.root(index)].append(index)
        return list(members.values())

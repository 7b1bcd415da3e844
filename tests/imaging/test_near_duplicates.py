"""Groups of images with similar perceptual hashes."""

from __future__ import annotations

import pytest

from lorakit.imaging.near_duplicates import MAX_HAMMING_DISTANCE, connected_groups, near_pairs


def text(plain: int, mirror: int = 0xAAAA_AAAA_AAAA_AAAA) -> str:
    return f"{plain:016x}{mirror:016x}"


@pytest.mark.parametrize(
    ("hashes", "pairs"),
    [
        ([], []),
        ([text(0)], []),
        ([text(0), text(0)], [(0, 1, False)]),
        ([text(0), text((1 << MAX_HAMMING_DISTANCE) - 1)], [(0, 1, False)]),
        ([text(0), text((1 << MAX_HAMMING_DISTANCE + 1) - 1)], []),
        ([text(0x0F0F_0F0F_0F0F_0F0F), text(0xFF00_FF00_FF00_FF00, 0x0F0F_0F0F_0F0F_0F0F)], [(0, 1, True)]),
    ],
)
def test_pairs_are_near_up_to_a_number_of_bits_also_mirrored(hashes, pairs):
    assert list(near_pairs(hashes)) == pairs


@pytest.mark.parametrize(
    ("count", "pairs", "groups"),
    [
        (3, [], [[0], [1], [2]]),
        (4, [(0, 2), (2, 3)], [[0, 2, 3], [1]]),
        (5, [(1, 2), (3, 4), (2, 3)], [[0], [1, 2, 3, 4]]),
    ],
)
def test_pairs_connect_images_to_groups(count, pairs, groups):
    assert sorted(connected_groups(count, pairs)) == groups

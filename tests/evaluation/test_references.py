"""Tests of reference units: near duplicates count once, held-out images measure fidelity."""

from __future__ import annotations

import numpy as np
import pytest

from lorakit.core import storage
from lorakit.evaluation.references import MAX_UNITS, ReferenceTable, reference_units


def unit_vectors(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 16))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def table(features: np.ndarray, trained_on: list[bool], triggers: list[str | None] | None = None):
    names = [f"{row}.png" for row in range(len(features))]
    return reference_units(features, names, trained_on, triggers or []).table(features)


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_copies_of_an_image_are_one_unit_and_do_not_change_the_ceiling(copies):
    features = unit_vectors(6)
    repeated = np.concatenate([features, np.repeat(features[:1], copies, 0)])
    plain, with_copies = table(features, [True] * 6), table(repeated, [True] * (6 + copies))
    assert len(with_copies.units) == 6
    assert len(with_copies.units[0].names) == 1 + copies
    assert with_copies.ceiling(None) == pytest.approx(plain.ceiling(None))


@pytest.mark.parametrize(("held_out", "uses_held_out"), [(0, False), (2, False), (3, True), (5, True)])
def test_held_out_images_measure_fidelity_if_there_are_three(held_out, uses_held_out):
    one = table(unit_vectors(8), [row >= held_out for row in range(8)])
    assert one.uses_held_out(None) is uses_held_out
    assert len(one.fidelity_units(None)) == (held_out if uses_held_out else 8)


def test_a_copy_of_a_trained_image_does_not_count_as_held_out():
    features = unit_vectors(6)
    repeated = np.concatenate([features, features[:1]])
    assert table(repeated, [True] * 6 + [False]).units[0].trained_on


def test_the_ceiling_compares_every_other_image_with_the_held_out_ones():
    features = unit_vectors(5)
    similarity = features @ features.T
    one = table(features, [False] * 3 + [True] * 2)
    expected = np.mean([similarity[row, column] for row in range(5) for column in range(3) if row != column])
    assert one.ceiling(None) == pytest.approx(expected)
    assert np.isnan(table(features[:1], [True]).ceiling(None))


def test_every_subject_has_its_own_units_and_at_most_so_many(tmp_path):
    features, triggers = unit_vectors(60), ["sks"] * 40 + ["ohwx"] * 20
    one = table(features, [True] * 60, triggers)
    assert len(one.subject_units("sks")) == MAX_UNITS
    assert len(one.subject_units("ohwx")) == 20
    assert one.subject_units("unknown") == list(range(MAX_UNITS + 20))
    file = storage.write_json(tmp_path / "table.json", one.to_json())
    again = ReferenceTable.from_json(storage.read_json(file))
    assert again.units == one.units
    assert np.array_equal(again.similarity, one.similarity)

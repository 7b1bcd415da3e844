"""The benchmarks run, and what they compare is the same training; their times are theirs to tell."""

from __future__ import annotations

from tests.benchmarks import step


def test_the_bare_floor_trains_as_lorakit_does():
    row = step.measure("tiny-dit", rounds=1, steps=2)
    assert row["loss_difference"] <= 1e-5
    assert row["ratio"] > 0

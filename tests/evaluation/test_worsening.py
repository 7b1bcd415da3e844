"""Scores that are worse at a later checkpoint: named beyond chance and only where the change matters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lorakit.evaluation.alarms import drift_limit
from lorakit.evaluation.worsening import worsened_scores
from tests.evaluation.simulated import Truth, simulate

EARLY = Truth(100, 0.7, 1.0, drift=0.05)


def compare(later: Truth, losses: tuple[list[float], list[float]] | None = None, seed: int = 0) -> list[str]:
    """Return what is worse at the later of two checkpoints."""
    evaluation = simulate([EARLY, later], seed=seed)
    variants = evaluation.adapter_variants
    for variant, values in zip(variants, losses or ([], []), strict=True):
        variant.losses["validation"] = values
    return worsened_scores(evaluation, *variants, drift_limit(evaluation, None))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"copies": 0.4}, "copies"),
        ({"drift": 0.3}, "drift"),
        ({"diversity": 0.7}, "diversity"),
        ({"prompt_adherence": 0.6}, "prompt adherence"),
    ],
)
def test_what_becomes_worse_is_named(change, name):
    assert compare(replace(EARLY, step=200, **change)) == [name]


def test_a_rising_validation_loss_is_named():
    losses = [0.50, 0.62, 0.41, 0.55, 0.48]
    assert compare(replace(EARLY, step=200), (losses, [v + 0.05 for v in losses])) == ["validation loss"]
    assert compare(replace(EARLY, step=200), (losses, [v - 0.05 for v in losses])) == []
    assert compare(replace(EARLY, step=200), (losses, losses[:1])) == []


@pytest.mark.parametrize("change", [{}, {"drift": 0.051}, {"prompt_adherence": 1.2}, {"diversity": 1.2}])
def test_chance_small_changes_and_improvements_are_not_named(change):
    """Five scores of ten pairs of checkpoints: chance names at most one."""
    named = [name for seed in range(10) for name in compare(replace(EARLY, step=200, **change), seed=seed)]
    assert len(named) <= 1

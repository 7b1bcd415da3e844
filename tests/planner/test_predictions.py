"""Predicted memory of steps on this CPU, held to what torch's allocator reports."""

from __future__ import annotations

import pytest

from lorakit.planner.footprint import estimate_footprint
from lorakit.training import memory_remedies
from tests import runs, tiny
from tests.planner.measured import make_trainer, peak_growth


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 3)


# the tiny networks have a few large tensors, in which a temporary one counts much: 10 % on larger ones, which
# `python -m tests.benchmarks plan` measures
@pytest.mark.parametrize("checkpointing", [0, 1])
@pytest.mark.parametrize(("base", "tolerance"), [("sd15", 0.1), ("sd3", 0.15)])
def test_the_activations_of_a_step_are_those_that_are_predicted(
    data, tmp_path, base, tolerance, checkpointing
):
    batch = 4
    trainer = make_trainer(
        tmp_path,
        tiny.tiny_folder(base),
        data,
        resolution=192,
        memory={"gradient_checkpointing": checkpointing},
        train={"steps": 4, "batch_size": batch, "precision": "fp32"},
        optimizer={"name": "adamw"},
    )
    step = trainer.training_step
    samples = step._largest_samples(batch)
    step.compute_gradients(samples)
    measured = peak_growth(lambda: step.compute_gradients(samples))
    situation = memory_remedies.session_situation(trainer.session)
    footprint = estimate_footprint(situation.demand, situation.settings, batch)
    predicted = footprint.activations + footprint.recomputed + footprint.temporary
    assert predicted == pytest.approx(measured, rel=tolerance)

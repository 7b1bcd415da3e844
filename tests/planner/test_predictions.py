"""Predicted memory of steps on this CPU, held to what torch's allocator reports."""

from __future__ import annotations

import pytest

from tests import runs, tiny
from tests.planner.measured import Setting, plan_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 1)


# the tiny networks have a few large tensors, in which a temporary one counts much: 10 % on larger ones, which
# `python -m tests.benchmarks plan` measures, as it measures times
@pytest.mark.parametrize("checkpointing", [0, 1])
@pytest.mark.parametrize(("base", "tolerance"), [("sd15", 0.1), ("sd3", 0.15)])
def test_the_activations_of_a_step_are_those_that_are_predicted(
    data, tmp_path, base, tolerance, checkpointing
):
    setting = Setting(images=4, resolution=192, checkpointing=checkpointing)
    run = plan_run(tmp_path, tiny.tiny_folder(base), data, setting)
    footprint = run.footprint
    predicted = footprint.activations + footprint.recomputed + footprint.temporary
    assert predicted == pytest.approx(run.measured_activations(), rel=tolerance)

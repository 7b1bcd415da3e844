from __future__ import annotations

import math

import pytest

from lorakit.core import storage
from lorakit.training.final_loss import FinalLoss
from tests import runs
from tests.long_tier import long


@pytest.mark.parametrize("adapter", [1.02, 3.0, math.inf, math.nan])
def test_an_adapter_that_is_worse_than_the_base_is_a_warning(adapter):
    loss = FinalLoss(1.0, adapter)
    assert loss.is_worse
    assert loss.summary(0.5).startswith("warning: the adapter is worse than the base model")
    assert "lower optimizer.lr than 0.5" in loss.summary(0.5)


@pytest.mark.parametrize(("held_out", "overfits"), [(0.9, False), (1.0, False), (1.3, True)])
def test_an_adapter_that_is_worse_on_held_out_images_only_overfits(held_out, overfits):
    loss = FinalLoss(1.0, 0.7, 1.0, held_out)
    assert not loss.is_worse
    assert loss.overfits == overfits
    assert ("overfits" in loss.summary(1e-4)) == overfits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"validate": {"fraction": 0.34}},
        pytest.param({"adapter": {"rank": 2, "text_encoder": True}, "base": "tiny-unet"}, marks=long),
        {"adapter": {"type": "dora", "rank": 2}},
    ],
)
def test_a_run_that_learns_records_both_losses(tmp_path, changes):
    changes = dict(changes)
    base = changes.pop("base", "tiny-dit")
    data = runs.make_dataset(tmp_path / "data", 6)
    train = {"steps": 25, "batch_size": 6, "precision": "fp32"}
    file = runs.make_recipe(
        tmp_path / "r.yaml", base, data, tmp_path / "run", train=train, optimizer={"lr": 3e-3}, **changes
    )
    run = runs.train(file)
    final = storage.read_json(run / "run.json")["final_loss"]
    assert final["adapter"] < final["base"]
    assert ("held_out_base" in final) == ("validate" in changes)
    assert "loss on training images: base model" in (run / "log.txt").read_text()

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lorakit.config import recipe as recipes
from lorakit.training.plan_warnings import plan_warnings
from tests import runs

BASE = {"base": "tiny-dit", "dataset": "d", "out": "o", "resolution": 512}


def warnings(num_images=20, batch=4, side=512, repeats=1, **changes):
    recipe = recipes.parse_recipe(BASE | changes)
    items = [
        SimpleNamespace(record=SimpleNamespace(content_hash=str(i)), repeats=repeats)
        for i in range(num_images)
    ]
    return plan_warnings(recipe, items, total_batch_size=batch, native_side=side)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"lr": 1e-3}},
        {"optimizer": {"lr": 1e-5, "warmup": 100}},
        {"adapter": {"rank": 64, "alpha": 32}},
        {"adapter": {"rank": 16, "alpha": 1}},
        {"adapter": {"type": "rslora", "rank": 64, "alpha": 16}},
        {"textual_inversion": {"token": "sks", "initializer_token": "dog"}},
        {"objective": {"noise_offset": 0.1}, "caption_use": {"caption_dropout": 0.1}},
        {"resolution": 768},
        {"side": None, "resolution": 64},
        {"train": {"steps": 3000}, "num_images": 15},
        {"num_images": 4, "repeats": 10},
    ],
)
def test_usual_settings_are_not_named(changes):
    assert warnings(**changes) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {"lr": 1.0}}, "optimizer.lr is 1, far above"),
        ({"optimizer": {"lr": 0.02}}, "optimizer.lr is 0.02, far above"),
        ({"optimizer": {"lr": 1e-9}}, "far below"),
        ({"adapter": {"text_encoder": True, "text_encoder_lr": 0.5}}, "adapter.text_encoder_lr is 0.5"),
        (
            {"textual_inversion": {"token": "sks", "initializer_token": "dog", "lr": 3.0}},
            "textual_inversion.lr is 3",
        ),
        ({"optimizer": {"loraplus_lr_ratio": 1000.0}}, "loraplus_lr_ratio is 1000"),
        ({"optimizer": {"weight_decay": 5.0}}, "optimizer.weight_decay is 5"),
        ({"optimizer": {"betas": [0.1, 0.999]}}, "optimizer.betas"),
        ({"optimizer": {"max_grad_norm": 1e-6}}, "optimizer.max_grad_norm"),
        ({"optimizer": {"warmup": 1400}}, "optimizer.warmup takes 1400 of 1500"),
        ({"caption_use": {"caption_dropout": 0.9}}, "drops 90% of the captions"),
        ({"caption_use": {"tag_dropout": 0.8}}, "leaves out 80% of the tags"),
        ({"objective": {"noise_offset": 0.9}}, "objective.noise_offset is 0.9"),
        ({"adapter": {"rank": 4, "alpha": 400}}, "adapter.alpha 400 at rank 4"),
        ({"adapter": {"rank": 1024, "alpha": 1}}, "the adapter will hardly learn"),
        ({"adapter": {"type": "rslora", "rank": 4, "alpha": 400}}, "adapter.alpha 400 at rank 4"),
        ({"num_images": 1, "batch": 1}, "the dataset has one image"),
        ({"num_images": 3, "batch": 1}, "the dataset has only 3 images"),
        ({"num_images": 5, "batch": 64}, "a step takes 64 images and an epoch has 5"),
        ({"train": {"steps": 100_000}, "num_images": 5}, "epochs of 5 images"),
        ({"train": {"steps": 300}, "num_images": 50_000}, "2% of the images once"),
        ({"train": {"steps": 100}}, "train.save_every is 250 and the run has 100 steps"),
        ({"side": 64}, "resolution 512 is much larger than the base model's own 64"),
        ({"side": 2048}, "much smaller than the base model's own 2048"),
        ({"side": 1024, "resolution": 256}, "much smaller"),
    ],
)
def test_a_setting_far_outside_the_usual_range_is_named(changes, words):
    assert any(words in text for text in warnings(**changes)), warnings(**changes)


def test_a_run_logs_its_warnings_and_the_end_that_is_worse_than_the_base(tmp_path):
    data = runs.make_dataset(tmp_path / "data", 3)
    train = {"steps": 4, "batch_size": 4, "precision": "fp32"}
    file = runs.make_recipe(
        tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", train=train, optimizer={"lr": 1.0}
    )
    log = (runs.train(file) / "log.txt").read_text()
    assert "warning: optimizer.lr is 1, far above" in log
    assert "warning: the dataset has only 3 images" in log
    assert "warning: a step takes 4 images and an epoch has 3" in log
    assert "warning: the adapter is worse than the base model on its own training images" in log

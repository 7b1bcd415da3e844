"""Remedies of numeric failures: each is a setting of the recipe, not in force yet, and the device has it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lorakit.config.recipe import change_recipe, load_recipe
from lorakit.core.errors import NumericError
from lorakit.models import device as devices
from lorakit.training import checkpoint, numeric_errors, setup
from lorakit.training.losses import DenoisingLoss
from lorakit.training.step import TrainingStep
from tests import runs, tiny

OVERRIDE = re.compile(r"[a-z_]+(?:\.[a-z_]+)*=[^\s,;]+")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 2)


def make(folder: Path, data: Path, **changes) -> Path:
    tree = {"adapter": {"rank": 2, "alpha": 2}, "train": {"steps": 12, "batch_size": 1, "save_every": 4}}
    return runs.make_recipe(
        folder / "r.yaml", tiny.tiny_folder("sd3-no-t5"), data, folder / "run", **(tree | changes)
    )


def check_remedy(file: Path, overrides: list[str], remedy: str) -> list[str]:
    """Return the overrides that a remedy names, after checking that each is valid and changes the recipe."""
    recipe = load_recipe(file, overrides)
    named = OVERRIDE.findall(remedy)
    for override in named:
        assert change_recipe(recipe, [override]) != recipe, override
    return named


def poisoned_losses(monkeypatch) -> None:
    plain = TrainingStep.sample_losses
    monkeypatch.setattr(TrainingStep, "sample_losses", lambda *a: plain(*a) * float("nan"))


def damaged_weight(monkeypatch) -> None:
    load = setup.load_trained_components

    def damaged(*arguments):
        pipe = load(*arguments)
        next(pipe.transformer.parameters()).data.view(-1)[0] = float("nan")
        return pipe

    monkeypatch.setattr(setup, "load_trained_components", damaged)


@pytest.mark.parametrize("failure", [poisoned_losses, damaged_weight])
@pytest.mark.parametrize(
    ("precision", "supported", "wider"),
    [
        ("fp32", ("bf16", "fp16", "fp32"), []),
        ("bf16", ("bf16", "fp16", "fp32"), ["fp32"]),
        ("fp16", ("bf16", "fp16", "fp32"), ["bf16", "fp32"]),
        ("fp16", ("fp16", "fp32"), ["fp32"]),
    ],
)
def test_the_error_of_a_run_names_only_what_is_not_in_force(
    failure, precision, supported, wider, data, tmp_path, monkeypatch
):
    failure(monkeypatch)
    monkeypatch.setattr(devices, "supported_precisions", lambda device: supported)
    file, overrides = make(tmp_path, data), [f"train.precision={precision}"]
    with pytest.raises(NumericError) as caught:
        runs.train(file, *overrides)
    named = check_remedy(file, overrides, str(caught.value.remedy))
    if failure is damaged_weight:
        assert named == []
        assert "transformer." in str(caught.value)
        assert "download the base model again" in str(caught.value)
    else:
        assert named == ["optimizer.lr=0.0001", *(f"train.precision={name}" for name in wider)]


def test_a_weight_that_float16_cannot_hold_is_told_from_a_damaged_one(data, tmp_path, monkeypatch):
    linear = torch.nn.Linear(2, 2)
    linear.weight.data.fill_(1e6)
    recipe = load_recipe(make(tmp_path, data), ["train.precision=fp16"])
    session = SimpleNamespace(
        recipe=recipe, device=torch.device("cpu"), pipe=SimpleNamespace(components={"unet": linear.half()})
    )
    error = numeric_errors.skipped_steps_error(session, 11, 10)
    assert "unet.weight is too large for float16" in str(error)
    assert OVERRIDE.findall(error.remedy) == ["train.precision=bf16", "train.precision=fp32"]
    linear.weight.data[0, 0] = float("nan")
    assert "contain NaN or infinity" in str(numeric_errors.skipped_steps_error(session, 11, 10))


WIDER = {"fp32": [], "bf16": ["fp32"], "fp16": ["bf16", "fp32"]}


@pytest.mark.parametrize("precision", WIDER)
def test_a_base_that_overflows_is_refused_before_the_first_step(precision, data, tmp_path, monkeypatch):
    plain = DenoisingLoss.predict
    monkeypatch.setattr(DenoisingLoss, "predict", lambda *a: plain(*a) * float("inf"))
    file, overrides = make(tmp_path, data), [f"train.precision={precision}"]
    with pytest.raises(NumericError, match="before any training") as caught:
        runs.train(file, *overrides)
    remedies = check_remedy(file, overrides, str(caught.value.remedy))
    assert remedies == [f"train.precision={name}" for name in WIDER[precision]]
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize("part", ["adapter", "optimizer"])
@pytest.mark.parametrize("saved", [False, True])
def test_a_checkpoint_that_is_not_finite_names_the_adapter_to_start_from(part, saved, data, tmp_path):
    file = make(tmp_path, data, train={"steps": 2, "batch_size": 1, "save_every": 2, "precision": "fp32"})
    run = runs.train(file)
    good = checkpoint.latest_valid_checkpoint(run).checkpoint
    tensors = dict(getattr(good, part))
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    values = {key: getattr(good, key) for key in good.__dataclass_fields__}
    bad = checkpoint.Checkpoint(**(values | {part: tensors, "step": 3}))
    folder = run if saved else tmp_path / "new"
    with pytest.raises(NumericError, match="not finite") as caught:
        checkpoint.save_checkpoint(folder, bad, {})
    named = check_remedy(file, [], str(caught.value.remedy))
    assert len(named) == saved
    if saved:
        runs.train(file, *named, "optimizer.lr=1e-4", f"out={tmp_path / 'again'}")

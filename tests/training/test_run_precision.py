"""`train.precision: auto`: the recorded precision, else the one for the device; a change is refused."""

from __future__ import annotations

import pytest

from lorakit.config.recipe import load_recipe, training_settings
from lorakit.core.errors import ConfigError, DataError
from lorakit.models import device as devices
from lorakit.training import run_changes, run_precision, train
from lorakit.training.run_folder import RunFolder
from tests import runs

INPUTS = {"data": "d", "base": "b", "num_processes": 1}


@pytest.fixture
def recipe(tmp_path):
    """Return a function that loads a recipe with a precision; its run is in tmp_path/run."""
    data = runs.make_dataset(tmp_path / "data", 2)
    train_keys = {"steps": 1, "batch_size": 1, "save_every": 1}
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", train=train_keys)
    return lambda precision="auto": load_recipe(file, [f"train.precision={precision}"])


@pytest.fixture
def device(monkeypatch):
    """Return a function that lets the default device be of a kind, with these precisions."""

    def install(kind: str, supported: tuple[str, ...]) -> None:
        monkeypatch.setattr(devices, "default_device", lambda: devices.torch.device(kind))
        monkeypatch.setattr(devices, "supported_precisions", lambda device: supported)

    return install


def start_run(recipe, precision: str) -> RunFolder:
    """Record a run that was started with a precision and has saved a step."""
    run = RunFolder(recipe.out)
    run_changes.start_or_resume(run, run_precision.change_precision(recipe, precision), INPUTS)
    run.update_record(checkpoint_step=1)
    return run


@pytest.mark.parametrize(
    ("kind", "supported", "expected"),
    [
        ("cuda", ("bf16", "fp16", "fp32"), "bf16"),
        ("cuda", ("fp16", "fp32"), "fp16"),
        ("cpu", ("bf16", "fp16", "fp32"), "fp32"),
    ],
)
def test_a_new_run_has_the_precision_of_the_device(kind, supported, expected, recipe, device):
    device(kind, supported)
    decided = run_precision.with_precision(recipe())
    assert training_settings(decided)["train.precision"] == expected
    assert run_precision.with_recorded_precision(recipe()).train.precision == "auto"


@pytest.mark.parametrize("recorded", ["bf16", "fp16"])
def test_a_run_keeps_its_precision_on_another_device(recorded, recipe):
    run = start_run(recipe(), recorded)
    for decide in (run_precision.with_precision, run_precision.with_recorded_precision):
        decided = decide(recipe())
        assert decided.train.precision == recorded
        run_changes.check_settings(run, decided, 1, accept_changes=False)
    choice = run_precision.choose_precision(recipe(), "cpu", "fp32")
    assert choice.value == recorded
    assert str(run.path) in choice.reason


def test_the_first_recorded_precision_holds_for_all_members_of_a_sweep(recipe, tmp_path):
    start_run(recipe(), "bf16")
    folders = [tmp_path / "new", tmp_path / "run"]
    assert run_precision.with_precision(recipe(), folders).train.precision == "bf16"


def test_another_precision_is_refused_with_the_difference(recipe):
    run = start_run(recipe(), "bf16")
    changed = run_precision.with_precision(recipe("fp32"))
    with pytest.raises(ConfigError, match=r"train\.precision: bf16 -> fp32"):
        run_changes.check_settings(run, changed, 1, accept_changes=False)


def test_a_damaged_record_is_named(recipe):
    run = start_run(recipe(), "bf16")
    run.record_file.write_text("{}")
    with pytest.raises(DataError, match=r"run\.json is not the record of a run"):
        run_precision.with_precision(recipe())


def test_a_trained_run_records_the_precision_that_was_chosen(recipe):
    run = train.train_recipe(recipe())
    assert run.record()["settings"]["train.precision"] == "fp32"
    assert load_recipe(run.path / "recipe.yaml").train.precision == "fp32"
    assert "in fp32" in (run.path / "log.txt").read_text()

"""The content of a checkpoint: finite numbers, in a known format that stays readable."""

from __future__ import annotations

import pytest
import torch

from lorakit.config.recipe import OptimizerConfig
from lorakit.core import checksums, storage
from lorakit.core.errors import NumericError
from lorakit.training import checkpoint, optimizer_state, optimizers
from tests.reliability import checks, corruption, golden, instants
from tests.reliability.tiny_training import DIT

FORMATS = sorted(path.name for path in golden.FOLDER.glob("format-*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["adapter", "optimizer"])
def test_a_non_finite_tensor_is_refused_and_nothing_is_written(tmp_path, part, value):
    checks.write_steps(tmp_path, 1, 2, keep=1)
    before = instants.capture(tmp_path)
    bad = checks.make_checkpoint(4)
    getattr(bad, part)["bad"] = torch.tensor([1.0, value])
    with pytest.raises(NumericError, match="not finite") as caught:
        checkpoint.save_checkpoint(tmp_path, bad, {})
    assert "bad" in str(caught.value)
    assert instants.capture(tmp_path) == before


def test_the_current_format_has_a_golden_file():
    assert f"format-{checkpoint.FORMAT_VERSION}" in FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_a_golden_file_of_each_format_is_read(name):
    latest = checkpoint.latest_valid_checkpoint(golden.FOLDER / name)
    assert not latest.problems
    saved = latest.checkpoint
    assert (saved.step, saved.state) == (2, {"skipped_steps": [1], "micro_batch_size": 1})
    assert {key: tuple(t.shape) for key, t in saved.adapter.items()} == {
        f"unet.{key}": shape for key, shape in golden.SHAPES.items()
    }
    assert saved.adapter["unet.a.lora_B.weight"][3, 1] < -0.15  # two steps of about the rate, 0.1
    trained = golden.parameters()
    optimizer = optimizers.build_optimizer(trained, OptimizerConfig(lr=0.1))
    optimizer_state.load_optimizer_state_dict(optimizer, trained, saved.optimizer)
    back = optimizer_state.optimizer_state_dict(optimizer, trained)
    assert back.keys() == saved.optimizer.keys()
    assert all(torch.equal(back[key], value) for key, value in saved.optimizer.items())


def test_the_current_format_is_written_unchanged(tmp_path):
    """Reading the golden file and writing it again gives the same bytes."""
    run = golden.FOLDER / f"format-{checkpoint.FORMAT_VERSION}"
    saved = checkpoint.latest_valid_checkpoint(run).checkpoint
    checkpoint.save_checkpoint(tmp_path, saved, {"format": "pt", "lorakit": "{}"})
    assert instants.capture(tmp_path / "checkpoints") == instants.capture(run / "checkpoints")


def test_a_future_format_is_refused_and_not_skipped(recorded):
    training, reference, seen = recorded(DIT, False)
    folder = corruption.laid_out(training, seen, 15)[-1]
    files = {
        file.name: file.read_bytes() for file in folder.iterdir() if file.name != checksums.CHECKSUMS_FILE
    }
    state = storage.read_json(folder / checkpoint.STATE_FILE)
    future = storage.dump_json(state | {"format_version": checkpoint.FORMAT_VERSION + 1}).encode()
    storage.commit_folder(folder, files | {checkpoint.STATE_FILE: future})
    code, output = training.train()
    assert code == 3, output
    assert f"format {checkpoint.FORMAT_VERSION + 1}" in output
    assert "remedy:" in output
    storage.commit_folder(folder, files)  # the newer version would have gone on
    assert checks.finish(training, reference, at_least=15) == []

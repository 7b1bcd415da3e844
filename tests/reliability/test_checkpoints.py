"""What may be in a checkpoint: finite numbers, of a known format, readable for ever."""

from __future__ import annotations

import pytest
import torch

from lorakit.config.recipe import OptimizerConfig
from lorakit.core import storage
from lorakit.core.errors import NumericError
from lorakit.training import checkpoint, optimizers
from tests.reliability import checks, corruption, golden, instants
from tests.reliability.world import DIT

FORMATS = sorted(path.name for path in golden.FOLDER.glob("format-*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["adapter", "optimizer"])
def test_70_a_non_finite_tensor_is_refused_and_nothing_is_written(tmp_path, part, value):
    checks.do_steps(tmp_path, 1, 2, keep=1)
    before = instants.capture(tmp_path)
    bad = checks.make_checkpoint(4)
    getattr(bad, part)["bad"] = torch.tensor([1.0, value])
    with pytest.raises(NumericError, match="not finite") as caught:
        checkpoint.save_checkpoint(tmp_path, bad, {}, keep=1)
    assert "bad" in str(caught.value)
    assert instants.capture(tmp_path) == before


def test_73_the_present_format_has_a_golden_file():
    assert f"format-{checkpoint.FORMAT}" in FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_73_a_golden_file_of_each_format_is_read(name):
    found, problems = checkpoint.latest_valid_checkpoint(golden.FOLDER / name)
    assert not problems
    assert (found.step, found.facts) == (2, {"skipped": [1], "micro_batch": 1})
    assert {key: tuple(t.shape) for key, t in found.adapter.items()} == {
        f"unet.{key}": shape for key, shape in golden.SHAPES.items()
    }
    assert found.adapter["unet.a.lora_B.weight"][3, 1] < -0.15  # two steps of about the rate, 0.1
    trained = golden.parameters()
    optimizer = optimizers.build_optimizer(trained, OptimizerConfig(lr=0.1))
    optimizers.load_optimizer_state_dict(optimizer, trained, found.optimizer)
    back = optimizers.optimizer_state_dict(optimizer, trained)
    assert back.keys() == found.optimizer.keys()
    assert all(torch.equal(back[key], value) for key, value in found.optimizer.items())


def test_73_the_present_format_is_written_as_ever(tmp_path):
    """Reading the golden file and writing it again gives the same bytes."""
    run = golden.FOLDER / f"format-{checkpoint.FORMAT}"
    found, _ = checkpoint.latest_valid_checkpoint(run)
    checkpoint.save_checkpoint(tmp_path, found, {"format": "pt", "lorakit": "{}"}, keep=1)
    assert instants.capture(tmp_path / "checkpoints") == instants.capture(run / "checkpoints")


def test_73_a_future_format_is_refused_and_not_passed_over(recorded):
    made, reference, seen = recorded(DIT, False)
    folder = corruption.laid_out(made, seen, 15)[-1]
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != storage.CHECKSUMS_FILE}
    state = storage.read_json(folder / checkpoint.STATE)
    future = storage.dump_json(state | {"format": checkpoint.FORMAT + 1}).encode()
    storage.commit_folder(folder, files | {checkpoint.STATE: future})
    code, said = made.train()
    assert code == 3, said
    assert f"format {checkpoint.FORMAT + 1}" in said
    assert "remedy:" in said
    storage.commit_folder(folder, files)  # the newer version would have gone on
    assert checks.finish(made, reference, at_least=15) == []

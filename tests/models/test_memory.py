"""Memory is counted right, and running out of it costs no image and no run."""

from __future__ import annotations

import pytest
import torch

from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import MemoryLimitError
from lorakit.models import memory
from lorakit.training import checkpoint, run_caches, run_plan
from lorakit.training.trainer import Trainer
from lorakit.training.validation import Validator
from tests import runs, tiny

GIVEN_UP = "CUDA out of memory. Tried to allocate 2.00 GiB.\nadvice"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("data"))


def small_memory(monkeypatch, fits: int, since: int = 0) -> list[int]:
    """A device on which `fits` images go at once from step `since` on; returns the sizes that were tried."""
    plain, tried = Trainer.loss, []

    def loss(self, slots, times):
        tried.append(len(slots))
        if len(slots) > fits and self.state.step >= since:
            raise torch.OutOfMemoryError(GIVEN_UP)
        return plain(self, slots, times)

    monkeypatch.setattr(Trainer, "loss", loss)
    return tried


def test_85_out_of_memory_splits_the_micro_batch_and_keeps_the_effective_batch(data, tmp_path, monkeypatch):
    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder("sd15"), data, tmp_path / "run")
    whole = storage.read_jsonl(runs.train(file, f"out={tmp_path / 'whole'}") / "metrics.jsonl")
    tried = small_memory(monkeypatch, 1)
    run = runs.train(file)
    assert tried[:2] == [2, 1]  # the largest size is tried before step 1, and only there it fails
    assert set(tried[1:]) == {1}
    split = storage.read_jsonl(run / "metrics.jsonl")
    assert [row["loss"] for row in split] == pytest.approx([row["loss"] for row in whole], rel=1e-3)
    assert split[0]["grad_norm"] == pytest.approx(whole[0]["grad_norm"], rel=1e-4)
    assert "no memory for 2 images at once, going on with 1" in (run / "log.txt").read_text()
    assert checkpoint.latest_valid_checkpoint(run)[0].facts["micro_batch"] == 1


def test_85_memory_that_runs_out_in_the_middle_of_a_step_changes_nothing_of_it(data, tmp_path, monkeypatch):
    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder("sd15"), data, tmp_path / "run")
    weights: dict[int, list[torch.Tensor]] = {}
    plain = Trainer._halve

    def halve(self, reason):
        weights[self.state.step] = [p.detach().clone() for _, p in self.parameters]
        assert all(p.grad is None for _, p in self.parameters)
        plain(self, reason)
        assert all(
            torch.equal(a, p) for a, (_, p) in zip(weights[self.state.step], self.parameters, strict=True)
        )

    small_memory(monkeypatch, 1, since=5)
    monkeypatch.setattr(Trainer, "_halve", halve)
    run = runs.train(file)
    assert list(weights) == [5]
    assert len(storage.read_jsonl(run / "metrics.jsonl")) == 12
    first = (run / "adapter.safetensors").read_bytes()
    monkeypatch.setattr(Trainer, "_halve", plain)
    again = runs.train(file, f"out={tmp_path / 'again'}")
    assert (again / "adapter.safetensors").read_bytes() == first


def test_85_one_image_that_does_not_fit_is_an_error_with_sizes_and_remedies(data, tmp_path, monkeypatch):
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run")
    plain = Trainer.loss

    def loss(self, slots, times):
        if torch._guards.detect_fake_mode() is None:
            raise torch.OutOfMemoryError(GIVEN_UP)
        return plain(self, slots, times)  # the estimate runs on fake tensors

    monkeypatch.setattr(Trainer, "loss", loss)
    with pytest.raises(MemoryLimitError) as caught:
        runs.train(file, "resolution=96", "adapter.rank=16")
    text = str(caught.value)
    assert caught.value.exit_code == 4
    for part in ("base ", "activations of one image", "Tried to allocate 2.00 GiB", "memory={checkpoint: 1}"):
        assert part in text
    assert "resolution=64" in text
    assert "adapter.rank=8" in text
    assert "advice" not in text
    assert storage.read_json(tmp_path / "run/run.json")["status"] == "failed"


def test_85_no_memory_to_sample_or_to_validate_does_not_stop_training(data, tmp_path, monkeypatch):
    def no(*_):
        raise torch.OutOfMemoryError(GIVEN_UP)

    file = runs.make_recipe(
        tmp_path / "r.yaml",
        tiny.tiny_folder("sd15"),
        data,
        tmp_path / "run",
        samples={"prompts": str(runs.make_prompts(tmp_path / "p.jsonl")), "every": 4, "steps": 2},
        validate={"fraction": 0.34, "every": 4},
    )
    monkeypatch.setattr(Validator, "_sample", no)
    run = runs.train(file)
    assert "step 4: no memory to look, training goes on" in (run / "log.txt").read_text()
    assert storage.read_json(run / "run.json")["status"] == "done"


def test_85_no_memory_to_save_keeps_the_checkpoint_before(data, tmp_path, monkeypatch):
    plain = Trainer.commit

    def commit(self):
        if self.state.step == 8:
            raise torch.OutOfMemoryError(GIVEN_UP)
        plain(self)

    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder("sd15"), data, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "commit", commit)
        with pytest.raises(MemoryLimitError, match="out of memory"):
            runs.train(file)
    assert checkpoint.checkpoint_steps(tmp_path / "run") == [4]
    run = runs.train(file)
    other = runs.train(file, f"out={tmp_path / 'other'}")
    assert (run / "adapter.safetensors").read_bytes() == (other / "adapter.safetensors").read_bytes()


@pytest.mark.parametrize("batch", [1, 3])
def test_activations_are_counted_without_running_the_model(batch):
    """As many bytes as the real forward pass keeps."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))
    model[0].requires_grad_(False)
    x = torch.ones(batch, 8)
    kept = memory.activation_bytes(model, lambda: model(x + 0).square().sum())
    # x is not kept (its layer is frozen); what is: input of GELU only if it needs a gradient (it does not),
    # input of the last layer, and the input of the square
    assert kept == 4 * batch * (32 + 4)


def test_activations_grow_with_the_image_and_shrink_with_checkpointing(data, tmp_path, monkeypatch):
    counts = {}
    plain = Trainer.rehearse

    def rehearse(self):
        found = memory.estimate_memory(self.made.denoiser, "adamw8bit", self._largest_forward)
        counts[len(counts)] = found
        plain(self)

    monkeypatch.setattr(Trainer, "rehearse", rehearse)
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run")
    for number, extra in enumerate(([], ["resolution=96"], ["memory={checkpoint: 1}"])):
        runs.train(file, "train.steps=1", f"out={tmp_path / str(number)}", *extra)
    small, large, recomputed = (counts[i] for i in range(3))
    assert small.base == large.base
    assert 1.8 < large.activations / small.activations < 6
    assert recomputed.activations < 0.5 * small.activations
    assert (small.recomputed, recomputed.recomputed) == (False, True)


def test_text_encoders_that_do_not_fit_the_device_encode_on_the_processor(data, tmp_path, monkeypatch):
    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder("sd15"), data, tmp_path / "run")
    chosen, said, tried = recipe.load_recipe(file), [], []
    plan = run_plan.plan_training(chosen, said.append)
    plain = type(plan.family).load

    def load(self, folder, *, device="cpu", **options):
        tried.append(torch.device(device).type)
        if tried[-1] == "cuda":
            raise torch.OutOfMemoryError(GIVEN_UP)
        return plain(self, folder, device=device, **options)

    monkeypatch.setattr(type(plan.family), "load", load)
    filled = run_caches.TrainingCaches(chosen, plan, torch.device("cuda"), said.append)
    filled._fill_text()
    assert tried == ["cuda", "cpu"]
    assert "the processor encodes the texts" in said[-1]
    for item in plan.items:
        (cond,) = {value.dtype for value in filled.text.get(item.record.caption, item.size).values()}
        assert cond == torch.bfloat16  # what the device would have made, so that its cache is one
    filled._fill_text()  # known by now
    assert len(tried) == 2

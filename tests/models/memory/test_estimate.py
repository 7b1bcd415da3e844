"""Memory estimates, and running out of memory without losing an image or a run."""

from __future__ import annotations

import pytest
import torch

from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import MemoryLimitError
from lorakit.models import memory
from lorakit.training import checkpoint, run_caches, run_plan
from lorakit.training.monitor import TrainingMonitor
from lorakit.training.step import TrainingStep
from lorakit.training.trainer import Trainer
from tests import runs, tiny

GIVEN_UP = "CUDA out of memory. Tried to allocate 2.00 GiB.\nadvice"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("data"))


def small_memory(monkeypatch, fits: int, since: int = 0) -> list[int]:
    """Let only `fits` images fit at once from step `since` on; returns the list of tried sizes."""
    plain, tried = TrainingStep.sample_losses, []

    def sample_losses(self, samples, uniforms):
        tried.append(len(samples))
        if len(samples) > fits and self.state.step >= since:
            raise torch.OutOfMemoryError(GIVEN_UP)
        return plain(self, samples, uniforms)

    monkeypatch.setattr(TrainingStep, "sample_losses", sample_losses)
    return tried


def test_out_of_memory_splits_the_micro_batch_and_keeps_the_effective_batch(data, tmp_path, monkeypatch):
    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder("sd15"), data, tmp_path / "run")
    whole = storage.read_jsonl(runs.train(file, f"out={tmp_path / 'whole'}") / "metrics.jsonl")
    tried = small_memory(monkeypatch, 1)
    run = runs.train(file)
    assert tried[:2] == [2, 1]  # the largest size is tried before step 1, and fails only there
    assert set(tried[1:]) == {1}
    split = storage.read_jsonl(run / "metrics.jsonl")
    assert [row["loss"] for row in split] == pytest.approx([row["loss"] for row in whole], rel=1e-3)
    assert split[0]["grad_norm"] == pytest.approx(whole[0]["grad_norm"], rel=1e-4)
    assert "out of memory with 2 images at once, continuing with 1" in (run / "log.txt").read_text()
    assert checkpoint.latest_valid_checkpoint(run).checkpoint.state["micro_batch_size"] == 1


def test_running_out_of_memory_within_a_step_changes_nothing(data, tmp_path, monkeypatch):
    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder("sd15"), data, tmp_path / "run")
    weights: dict[int, list[torch.Tensor]] = {}
    plain = TrainingStep.halve_micro_batch

    def halve(self, reason):
        weights[self.state.step] = [p.detach().clone() for _, p in self.parameters.named]
        assert all(p.grad is None for _, p in self.parameters.named)
        plain(self, reason)
        assert all(
            torch.equal(a, p)
            for a, (_, p) in zip(weights[self.state.step], self.parameters.named, strict=True)
        )

    small_memory(monkeypatch, 1, since=5)
    monkeypatch.setattr(TrainingStep, "halve_micro_batch", halve)
    run = runs.train(file)
    assert list(weights) == [5]
    assert len(storage.read_jsonl(run / "metrics.jsonl")) == 12
    first = (run / "adapter.safetensors").read_bytes()
    monkeypatch.setattr(TrainingStep, "halve_micro_batch", plain)
    again = runs.train(file, f"out={tmp_path / 'again'}")
    assert (again / "adapter.safetensors").read_bytes() == first


def test_one_image_that_does_not_fit_is_an_error_with_sizes_and_remedies(data, tmp_path, monkeypatch):
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run")
    plain = TrainingStep.sample_losses

    def sample_losses(self, samples, uniforms):
        if torch._guards.detect_fake_mode() is None:
            raise torch.OutOfMemoryError(GIVEN_UP)
        return plain(self, samples, uniforms)  # the estimate runs on fake tensors

    monkeypatch.setattr(TrainingStep, "sample_losses", sample_losses)
    with pytest.raises(MemoryLimitError) as caught:
        runs.train(file, "resolution=96", "adapter.rank=16")
    text = str(caught.value)
    assert caught.value.exit_code == 4
    for part in (
        "base ",
        "activations of one image",
        "Tried to allocate 2.00 GiB",
    ):
        assert part in text
    assert "memory.gradient_checkpointing" not in text  # it was switched on before the run gave up
    log = (tmp_path / "run/log.txt").read_text()
    assert "recomputing the activations of 100% of the blocks" in log
    assert "resolution=72" in text
    assert "adapter.rank=8 adapter.alpha=4" in text  # the same alpha / rank
    assert "advice" not in text
    assert storage.read_json(tmp_path / "run/run.json")["status"] == "failed"


def test_no_memory_to_sample_or_to_validate_does_not_stop_training(data, tmp_path, monkeypatch):
    def no(*_):
        raise torch.OutOfMemoryError(GIVEN_UP)

    file = runs.make_recipe(
        tmp_path / "r.yaml",
        tiny.tiny_folder("sd15"),
        data,
        tmp_path / "run",
        samples={
            "prompts": str(runs.make_prompts(tmp_path / "p.jsonl")),
            "every": 4,
            "num_inference_steps": 2,
        },
        validate={"fraction": 0.34, "every": 4},
    )
    monkeypatch.setattr(TrainingMonitor, "_sample", no)
    run = runs.train(file)
    assert (
        "step 4: out of memory while sampling or validating, training continues"
        in (run / "log.txt").read_text()
    )
    assert storage.read_json(run / "run.json")["status"] == "done"


def test_no_memory_to_save_keeps_the_checkpoint_before(data, tmp_path, monkeypatch):
    plain = Trainer.save_checkpoint

    def save_checkpoint(self):
        if self.state.step == 8:
            raise torch.OutOfMemoryError(GIVEN_UP)
        plain(self)

    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder("sd15"), data, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_checkpoint", save_checkpoint)
        with pytest.raises(MemoryLimitError, match="out of memory"):
            runs.train(file)
    assert checkpoint.checkpoint_steps(tmp_path / "run") == [4]
    run = runs.train(file)
    other = runs.train(file, f"out={tmp_path / 'other'}")
    assert (run / "adapter.safetensors").read_bytes() == (other / "adapter.safetensors").read_bytes()


@pytest.mark.parametrize("batch", [1, 3])
def test_activations_are_counted_without_running_the_model(batch):
    """The number is that of the real forward pass."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))
    model[0].requires_grad_(False)
    x = torch.ones(batch, 8)
    kept = memory.activation_bytes(model, lambda: model(x + 0).square().sum())
    # x is not kept (its layer is frozen), nor the input of GELU, which needs no gradient; kept are the input
    # of the last layer and the input of the square
    assert kept == 4 * batch * (32 + 4)


def test_text_encoders_that_do_not_fit_the_device_encode_on_the_cpu(data, tmp_path, monkeypatch):
    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder("sd15"), data, tmp_path / "run")
    loaded, log, tried = recipe.load_recipe(file), [], []
    plan = run_plan.plan_training(loaded, log.append)
    plain = type(plan.family).load

    def load(self, folder, *, device="cpu", **options):
        tried.append(torch.device(device).type)
        if tried[-1] == "cuda":
            raise torch.OutOfMemoryError(GIVEN_UP)
        return plain(self, folder, device=device, **options)

    monkeypatch.setattr(type(plan.family), "load", load)
    monkeypatch.setattr("lorakit.models.device.supported_precisions", lambda device: ("bf16", "fp32"))
    caches = run_caches.RunCaches(loaded, plan, torch.device("cuda"), log.append)
    caches.fill_text(plan.items)
    assert tried == ["cuda", "cpu"]
    assert "the CPU encodes the texts" in log[-1]
    for item in plan.items:
        (dtype,) = {value.dtype for value in caches.text.get(item.record.caption, item.bucket).values()}
        assert dtype == torch.bfloat16  # as on the device, so that the cache is the same
    caches.fill_text(plan.items)  # all entries exist now
    assert len(tried) == 2

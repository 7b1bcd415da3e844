"""Training on a GPU; skipped without one."""

from __future__ import annotations

import pytest
import torch

from lorakit.core import storage
from lorakit.models import base_model
from lorakit.training import checkpoint
from tests import runs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("base", base_model.EMBEDDED_BASES)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_training_sampling_and_resume_on_the_gpu(base, precision, tmp_path):
    data = runs.make_dataset(tmp_path / "data")
    prompts = runs.make_prompts(tmp_path / "p.jsonl")
    train = {"steps": 8, "batch_size": 2, "accumulate": 2, "save_every": 4, "precision": precision}
    samples = {"prompts": str(prompts), "every": 4, "num_inference_steps": 2}
    file = runs.make_recipe(tmp_path / "r.yaml", base, data, tmp_path / "run", train=train, samples=samples)
    run = runs.train(file)
    losses = [row["loss"] for row in storage.read_jsonl(run / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 8
    assert all(loss > 0 for loss in losses)
    state = checkpoint.latest_valid_checkpoint(run).checkpoint.optimizer
    assert {v.dtype for k, v in state.items() if k.endswith("|state1")} == {torch.uint8}
    second = runs.train(file, f"out={tmp_path / 'again'}", "train.save_every=2")
    assert (second / "adapter.safetensors").stat().st_size == (run / "adapter.safetensors").stat().st_size

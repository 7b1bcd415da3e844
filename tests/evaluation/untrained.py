"""Runs with random adapters instead of trained ones: a folder that can be evaluated, in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lorakit import adapters
from lorakit.config.recipe import load_recipe
from lorakit.core import safetensors_header, storage
from lorakit.models import families, loading
from lorakit.models.base_model import resolve_base
from lorakit.training import checkpoint
from lorakit.training.run_folder import RunFolder
from tests import runs
from tests.evaluation import embedded


def make_run(folder: Path, steps: Sequence[int] = (100, 200, 300), num_images: int = 6) -> Path:
    """Write a run on the embedded DiT whose adapter grows with the steps; return its folder."""
    data = embedded.dataset(folder / "data", num_images)
    train = {"steps": max(steps), "batch_size": 4, "save_every": steps[0], "precision": "fp32"}
    file = runs.make_recipe(
        folder / "recipe.yaml", "tiny-dit", data, folder / "run", train=train, trigger=embedded.CONCEPT.word
    )
    recipe = load_recipe(file)
    run = RunFolder(folder / "run")
    settings = {"train.steps": max(steps), "train.batch_size": 4, "train.accumulate": 1}
    identity = {"settings": settings, "inputs": {"num_processes": 1}, "versions": {}}
    run.write_new_record(recipe, identity)
    run.update_record(status="done", step=max(steps), num_images=num_images)
    for step in steps:
        data_bytes = adapter_bytes(step, step / max(steps))
        files = {checkpoint.ADAPTER_FILE: data_bytes}
        storage.commit_folder(checkpoint.step_folder(run.path, step), files)
    storage.write_bytes(run.adapter_file, data_bytes)
    return run.path


def adapter_bytes(step: int, size: float, seed: int = 1, **metadata: object) -> bytes:
    """Return the file of a random adapter for the embedded DiT, as a run writes it after `step` steps."""
    base = resolve_base("tiny-dit")
    family = families.detect_family(base)
    pipe = loading.load_components(
        family, base, {"transformer"}, dtype=torch.float32, device=torch.device("cpu")
    )
    model = family.denoiser(pipe)
    adapters.inject_adapter(model, rank=2, alpha=2, targets=family.target_modules)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in adapters.trainable_parameters(model):
        std = 0.4 * size if key.endswith("lora_B.weight") else 0.2
        parameter.data.normal_(std=std, generator=generator)
    own = {"type": "lora", "rank": 2, "alpha": 2, "family": family.name, "resolution": 64, "step": step}
    tensors = adapters.adapter_state_dict({family.components.denoiser: model})
    return safetensors_header.safetensors_bytes(tensors, adapters.pack_metadata(own | metadata))

"""Adapters as a finished run leaves them, random instead of trained."""

from __future__ import annotations

import torch

from lorakit import adapter, families, storage
from tests import tiny

RANK, ALPHA = 4, 10.0
CAPTION = "a photo of a red circle"


def family_of(name):
    return families.find(tiny.tiny_folder(name))


def train(name, path, *, targets=None, std=0.3, **facts):
    """An adapter as a run leaves it, random instead of trained; returns the adapted pipeline."""
    family, pipe = family_of(name), tiny.build(name)
    model = family.denoiser(pipe)
    adapter.inject(model, rank=RANK, alpha=ALPHA, targets=targets or family.targets)
    generator = torch.Generator().manual_seed(11)
    for key, parameter in adapter.named_parameters(model):
        if key.endswith("lora_B.weight"):
            parameter.data.normal_(std=std, generator=generator)
    record = {
        "type": "lora",
        "rank": RANK,
        "alpha": ALPHA,
        "family": family.name,
        "pipeline": type(pipe).__name__,
        "base": "/home/alice/models/secret-base",
        "base_hash": "0" * 64,
        "resolution": 64,
        "trigger": "sks",
        "steps": 300,
        "recipe_hash": "1" * 64,
    }
    storage.write_safetensors(
        path, adapter.state(model, family.component), adapter.pack_metadata(record | facts)
    )
    return pipe


def predict(name, pipe):
    family = family_of(name)
    shape = family.latent_shape(pipe, 64, 32)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    cond = family.collate(family.encode(tiny.tiny_pipeline(name), [CAPTION]))
    t = torch.tensor([300 if family.objective == "ddpm" else 300.0])
    with torch.no_grad():
        return family.predict(family.denoiser(pipe), noise, t, cond)

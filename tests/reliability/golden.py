"""A checkpoint of each format that this version reads, as the version that introduced it wrote it.

`python -m tests.reliability.golden FOLDER` writes one of the present format; commit it when the format
changes, and never change the others.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from lorakit.config.recipe import OptimizerConfig
from lorakit.training import checkpoint, optimizer_state, optimizers
from lorakit.training.flat_parameters import FlatParameters

FOLDER = Path(__file__).parent / "formats"
SHAPES = {"a.lora_A.weight": (2, 3), "a.lora_B.weight": (4, 2)}


def parameters() -> FlatParameters:
    """A small adapter's parameters, all zero."""
    return FlatParameters([(name, torch.nn.Parameter(torch.zeros(shape))) for name, shape in SHAPES.items()])


def make(run: Path) -> Path:
    """A checkpoint after two steps of the 8-bit optimizer."""
    trained = parameters()
    optimizer = optimizers.build_optimizer(trained, OptimizerConfig(lr=0.1))
    for step in range(2):
        for _, parameter in trained.named:
            parameter.grad = torch.arange(parameter.numel()).view_as(parameter).float() - step
        trained.add_gradients()
        optimizers.take_step(optimizer, trained)
        trained.zero_gradients()
    adapter = {f"unet.{name}": parameter.detach().clone() for name, parameter in trained.named}
    moments = optimizer_state.optimizer_state_dict(optimizer, trained)
    saved = checkpoint.Checkpoint(2, adapter, moments, {"skipped_steps": [1], "micro_batch_size": 1}, "run")
    return checkpoint.save_checkpoint(run, saved, {"format": "pt", "lorakit": "{}"})


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))

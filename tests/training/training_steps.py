"""The steps of a small run before the first, for tests of losses and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lorakit import adapters
from lorakit.config import recipe as recipes
from lorakit.training import run_plan, setup
from lorakit.training.step import TrainingStep
from tests import runs


def training_step(folder: Path, data: Path, base: str = "tiny-dit", **changes: Any) -> TrainingStep:
    """The steps of a run before the first, with an adapter that has an effect."""
    file = runs.make_recipe(folder / "r.yaml", base, data, folder / "run", **changes)
    has_precision = "precision" in changes.get("train", {})
    recipe = recipes.load_recipe(file, [] if has_precision else ["train.precision=fp32"])
    plan = run_plan.plan_training(recipe, lambda text: None)
    accelerator = Accelerator(cpu=True)
    session = setup.build_session(recipe, plan, accelerator.device, main=True, wait_for_everyone=lambda: None)
    with torch.no_grad():
        for number, (_, parameter) in enumerate(adapters.trainable_parameters(session.denoiser)):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(0.05 * noise)
    return TrainingStep(session, accelerator, print)

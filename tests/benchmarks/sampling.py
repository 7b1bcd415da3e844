"""Sampling, beside diffusers' own pipeline, and an evaluation without and with its caches."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from lorakit.core import storage
from lorakit.data.prompts import Prompt
from lorakit.models import base_model
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline
from tests import runs
from tests.benchmarks import start_up
from tests.benchmarks.step import cpu_seconds

NUM_INFERENCE_STEPS, GUIDANCE, SIDE, IMAGES = 20, 4.0, 64, 3


def measure(base: str = "tiny-unet", *, rounds: int = 3) -> list[dict[str, Any]]:
    """Return the CPU seconds of an image: lorakit's pipeline, and diffusers' with the same settings.

    Both get all prompts at once."""
    own, theirs = SamplingPipeline(base), _diffusers_pipeline(base)
    prompts = [f"picture {number}" for number in range(IMAGES)]
    own_prompts = [Prompt(text, text, text, seeds=(0,)) for text in prompts]
    options = SamplingOptions(
        num_inference_steps=NUM_INFERENCE_STEPS, guidance_scale=GUIDANCE, size=(SIDE, SIDE), quiet=True
    )

    def sample_own() -> None:
        own.sample(own_prompts, options, "samples")

    def sample_theirs() -> None:
        theirs(
            prompts,
            width=SIDE,
            height=SIDE,
            num_inference_steps=NUM_INFERENCE_STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(0) for _ in prompts],
        )

    seconds: dict[str, list[float]] = {"lorakit": [], "diffusers": []}
    for number in range(rounds + 1):
        for name, work in (("lorakit", sample_own), ("diffusers", sample_theirs)):
            start = cpu_seconds()
            work()
            if number:
                seconds[name].append((cpu_seconds() - start) / IMAGES)
    return [
        {"name": f"{base}, {name}", "cpu_seconds": round(statistics.median(values), 3)}
        for name, values in seconds.items()
    ]


def _diffusers_pipeline(base: str) -> Any:
    import diffusers

    folder = base_model.resolve_base(base)
    index = storage.read_json(Path(folder) / "model_index.json")
    pipeline_class = getattr(diffusers, index["_class_name"])
    components = pipeline_class._get_signature_keys(pipeline_class)[0]
    absent = {name: None for name in components if not index.get(name, [None])[0]}  # such as a text encoder
    pipe = pipeline_class.from_pretrained(folder, dtype=torch.float32, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure_evaluation(folder: Path) -> list[dict[str, Any]]:
    """Return the CPU seconds of an evaluation of a short run, the first time and again with its caches."""
    data, _ = start_up.make_data(folder)
    contestant = start_up.lorakit(folder, "tiny-dit", data, steps=4, save_every=2)
    start_up.measure_command(contestant.command)
    prompts = runs.make_prompts(folder / "prompts.jsonl")
    command = [*start_up.LORAKIT, "eval", "run", str(contestant.out), "--prompts", str(prompts)]
    return [
        {"name": name, **start_up.measure_command(command)}
        for name in ("evaluate a run", "evaluate it again")
    ]

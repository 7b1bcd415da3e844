"""Pictures from prompts, through the base's own diffusers pipeline, with keyed noise.

The noise depends on (prompt id, seed) alone: the base, every checkpoint and every batch size start from the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit import keyed, storage
from lorakit.families.base import Cond, Family
from lorakit.progress import Progress
from lorakit.prompts import Prompt, Shot

INDEX = "samples.json"  # written last: where it is, the pictures are complete
SEED = 20_240_229  # of all sampling noise; a fixed number, so that runs with other training seeds compare


@dataclass(frozen=True)
class Settings:
    """How to sample; `guidance` None means the pipeline's default."""

    width: int
    height: int
    steps: int = 20
    guidance: float | None = None
    batch: int = 8


@dataclass(frozen=True)
class Encoded:
    """Text conditions of prompts and of their negatives, computed once while the text encoders are at
    hand."""

    prompts: list[Prompt]
    positive: list[Cond]
    negative: list[Cond]


def encode(family: Family, pipe: Any, prompts: Sequence[Prompt]) -> Encoded:
    """Encode all prompts with the pipeline's text encoders."""
    with torch.no_grad():
        positive = [family.encode(pipe, [prompt.prompt])[0] for prompt in prompts]
        negatives = {text: family.encode(pipe, [text])[0] for text in {p.negative or "" for p in prompts}}
    return Encoded(list(prompts), positive, [negatives[p.negative or ""] for p in prompts])


def sample(
    family: Family,
    pipe: Any,
    encoded: Encoded,
    settings: Settings,
    *,
    label: str = "samples",
    quiet: bool = False,
    autocast: AbstractContextManager[Any] | None = None,
) -> list[Shot]:
    """One picture for every seed of every prompt, in order."""
    jobs = [(i, seed) for i, prompt in enumerate(encoded.prompts) for seed in prompt.seeds]
    denoiser = family.denoiser(pipe)
    device = next(denoiser.parameters()).device
    shape = family.latent_shape(pipe, settings.width, settings.height)
    training = denoiser.training
    denoiser.eval()
    made: list[Shot] = []
    with torch.no_grad(), autocast or nullcontext(), Progress(label, len(jobs), quiet=quiet) as progress:
        for start in range(0, len(jobs), settings.batch):
            some = jobs[start : start + settings.batch]
            noise = [keyed.normal(shape, SEED, "sample", encoded.prompts[i].id, seed) for i, seed in some]
            pictures = family.sample(
                pipe,
                _on(device, family.collate([encoded.positive[i] for i, _ in some])),
                _on(device, family.collate([encoded.negative[i] for i, _ in some])),
                torch.stack(noise).to(device),
                steps=settings.steps,
                guidance=settings.guidance,
                width=settings.width,
                height=settings.height,
            )
            made += [Shot(encoded.prompts[i], s, p) for (i, s), p in zip(some, pictures, strict=True)]
            progress.update(len(made))
    denoiser.train(training)
    return made


def _on(device: torch.device, cond: Cond) -> Cond:
    return {name: tensor.to(device) for name, tensor in cond.items()}


def save(folder: Path, samples: Sequence[Shot]) -> list[Path]:
    """Write pictures as <prompt id>-<seed>.png and samples.json, which tells what each one is."""
    files = [storage.save_image(folder / f"{s.prompt.id}-{s.seed}.png", s.image) for s in samples]
    rows = [
        {"file": file.name, "prompt_id": s.prompt.id, "prompt": s.prompt.prompt, "seed": s.seed}
        for file, s in zip(files, samples, strict=True)
    ]
    storage.write_json(folder / INDEX, rows)
    return files

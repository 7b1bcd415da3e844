"""Plain diffusers pipelines with an adapter, and sampling with them: `lorakit.load_pipeline` and `sample`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.adapters.sources import AdapterSource, find_adapter
from lorakit.core.errors import ConfigError
from lorakit.data import conditioning
from lorakit.data.prompts import Prompt, default_prompt_id
from lorakit.models.families import Family
from lorakit.sampling import generate
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline, complete_settings

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image


def load_pipeline(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    strength: float | Sequence[float] | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> DiffusionPipeline:
    """Load a base model as a plain diffusers pipeline, with an adapter injected through peft.

    `base` is an embedded base model, a diffusers folder, a checkpoint file or a hub id; `adapter` is an
    adapter file of any origin, a run or its folder, RUN@STEP, or a list of those, which add up, with one
    `strength` for all or one for each. A run is its selected checkpoint at the selected strength, without an
    evaluation the last one: a line on stderr says which. Adapters of text encoders and new tokens are loaded
    too. The default device is the GPU if there is one; the default dtype is bfloat16 there, float16 on GPUs
    without it (whose VAE computes in float32), and float32 on the CPU and on MPS.

    The base model may be a fine-tune of the one that the adapter was trained on: a line on stderr says so.
    Raises ConfigError for an adapter whose family, modules or shapes do not fit.
    """
    sampling = SamplingPipeline(
        os.fspath(base),
        _adapter_sources(adapter, strength),
        device=device,
        dtype=dtype,
        keep_text_encoders=True,
    )
    pipe: DiffusionPipeline = sampling.pipe
    pipe.lorakit_family, pipe.lorakit_adapter = sampling.family, sampling.adapter_metadata
    return pipe


def _adapter_sources(
    adapter: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    strength: float | Sequence[float] | None,
) -> list[AdapterSource]:
    """Find the adapters; without a `strength` each has its own: a checkpoint of a run, or else 1."""
    if adapter is None:
        return []
    paths = [adapter] if isinstance(adapter, str | os.PathLike) else list(adapter)
    strengths = list(strength) if isinstance(strength, Sequence) else [strength] * len(paths)
    if len(strengths) != len(paths):
        raise ConfigError(
            f"{len(paths)} adapters and {len(strengths)} strengths",
            remedy="give one strength for all adapters, or one for each",
        )
    sources = []
    for path, value in zip(paths, strengths, strict=True):
        source = find_adapter(os.fspath(path))
        own = getattr(path, "strength", source.strength)  # of a `Checkpoint`
        sources.append(replace(source, strength=own if value is None else value).print_line())
    return sources


def sample(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    negative_prompt: str = "",
    images: Sequence[str | os.PathLike[str]] = (),
    mask: str | os.PathLike[str] | None = None,
    width: int | None = None,
    height: int | None = None,
    num_inference_steps: int = 20,
    guidance_scale: float | None = None,
    sampler: str | None = None,
    batch_size: int = 8,
    quiet: bool = True,
) -> list[Image.Image]:
    """Sample one image for every seed of every prompt, ordered by prompt, then by seed.

    The images are those of `lorakit sample` with the same settings and a text file of these prompts: the
    noise depends on the position of the prompt and on the seed, not on the batch size. `images` and `mask`
    are conditioning images for base models that take them. Without `width` and `height`, images have the
    adapter's resolution.

    `pipe` must come from `load_pipeline`. Raises ConfigError for settings that it does not support.
    """
    family: Family | None = getattr(pipe, "lorakit_family", None)
    if family is None:
        raise ConfigError(
            f"this {type(pipe).__name__} was not loaded by lorakit", remedy="use lorakit.load_pipeline"
        )
    adapter_metadata: Mapping[str, Any] = getattr(pipe, "lorakit_adapter", {})
    rows = [prompts] if isinstance(prompts, str) else prompts
    requests = [
        Prompt(
            id=default_prompt_id(number),
            prompt=text,
            score_text=text,
            negative=negative_prompt,
            seeds=tuple(seeds),
            images=tuple(Path(image) for image in images),
            mask=Path(mask) if mask is not None else None,
        )
        for number, text in enumerate(rows, 1)
    ]
    conditioning.check_prompt_conditioning(family, requests)
    options = SamplingOptions(
        num_inference_steps, guidance_scale, _size(width, height), batch_size, sampler=sampler, num_frames=1
    )
    settings = complete_settings(family, pipe, adapter_metadata, options)
    encoded = generate.encode_prompts(family, pipe, requests, settings)
    samples = generate.sample_images(family, pipe, encoded, settings, quiet=quiet)
    return [one.image for one in samples]


def _size(width: int | None, height: int | None) -> tuple[int, int] | None:
    """Return (width, height); one side alone means a square."""
    if width is None and height is None:
        return None
    return (width or height or 0), (height or width or 0)

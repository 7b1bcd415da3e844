"""Sizes that prompts ask for, on the grid of a base model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt
from lorakit.models.families.family import Family
from lorakit.sampling.generate import SamplingSettings


def resolve_sizes(
    family: Family, pipe: Any, prompts: Sequence[Prompt], settings: SamplingSettings
) -> tuple[list[Prompt], list[str]]:
    """Return the prompts with their sizes in pixels, and sentences about sizes that are rounded.

    A prompt with one side has the other of the `settings`; one with an aspect ratio has their area. Sides are
    rounded to multiples that the base model supports. Raises ConfigError for a size that it cannot generate.
    """
    multiple = family.size_multiple(pipe)
    rounded = Counter[str]()
    resolved = []
    for prompt in prompts:
        if prompt.width is None and prompt.height is None and prompt.aspect_ratio is None:
            resolved.append(prompt)
            continue
        exact = _exact_size(prompt, settings)
        width, height = (max(multiple, round(side / multiple) * multiple) for side in exact)
        if (width, height) != exact and prompt.aspect_ratio is None:
            rounded[f"{exact[0]:g}x{exact[1]:g} to {width}x{height}"] += 1
        try:
            family.latent_shape(pipe, width, height)
        except ConfigError as error:
            raise ConfigError(error.message, where=f"prompt {prompt.id!r}", remedy=error.remedy) from error
        resolved.append(replace(prompt, width=width, height=height, aspect_ratio=None))
    notes = [
        f"the size of {number} {'prompt is' if number == 1 else 'prompts is'} rounded from {change}:"
        f" this base model generates multiples of {multiple} pixels"
        for change, number in rounded.items()
    ]
    return resolved, notes


def _exact_size(prompt: Prompt, settings: SamplingSettings) -> tuple[float, float]:
    """Return (width, height) as the prompt asks for it."""
    ratio = prompt.aspect_ratio
    if ratio is None:
        return prompt.width or settings.width, prompt.height or settings.height
    if prompt.width:
        return prompt.width, prompt.height or prompt.width / ratio
    if prompt.height:
        return prompt.height * ratio, prompt.height
    area = settings.width * settings.height
    return math.sqrt(area * ratio), math.sqrt(area / ratio)

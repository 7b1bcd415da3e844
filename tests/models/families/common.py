"""The parts that the contract tests share: captions, timesteps, noise, one parametrization over all rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorakit.models import families
from lorakit.models.families import Conditioning, Family
from tests import tiny

CAPTIONS = ["a photo of a red circle", "small"]
all_rows = pytest.mark.parametrize("name", sorted(tiny.ROWS))


def family_of(name: str) -> Family:
    """Return the family of a row's pipeline, without saving it."""
    pipeline = type(tiny.tiny_pipeline(name)).__name__
    return next(family for family in families.FAMILIES if pipeline in family.pipelines)


def two_timesteps(family: Family) -> torch.Tensor:
    """Return a low and a high timestep (2,), in scheduler units."""
    return torch.tensor([321, 987]) if family.objective == "ddpm" else torch.tensor([123.4, 876.5])


def noise_for(name: str, size: tuple[int, int] | None = None, rows: int = 1, seed: int = 1) -> torch.Tensor:
    """Return noise (rows, C, H, W) for an image of `size` pixels, by default the row's first."""
    shape = family_of(name).latent_shape(tiny.tiny_pipeline(name), *(size or tiny.ROWS[name].sizes[0]))
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


def images_for(name: str, size: tuple[int, int] | None = None, row: int = 0) -> dict[str, torch.Tensor]:
    """Return conditioning images of `size` pixels for a row's family; they differ for every `row`."""
    if tiny.ROWS[name].image_arguments is None:
        return {}
    width, height = size or tiny.ROWS[name].sizes[0]
    generator, images = torch.Generator().manual_seed(row), {}
    spec = family_of(name).conditioning
    for kind in spec.accepted:
        shape = (2 if spec.multiple_sources else 1, 1 if kind == "mask" else 3, height, width)
        images[kind] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    if "mask" in images:
        images["mask"][:] = 0
        images["mask"][..., : height // 2, (row + 1) * width // 4 :] = 255
    return images


def encode_all(
    name: str, pipe: Any, captions: list[str], size: tuple[int, int] | None = None, num_frames: int = 1
) -> list[Conditioning]:
    """Encode captions, each with its own conditioning images, as a row's family predicts and samples from."""
    family, size, conds = family_of(name), size or tiny.ROWS[name].sizes[0], []
    for row, caption in enumerate(captions):
        images = images_for(name, size, row)
        text = family.encode_text(pipe, [caption], size, images)[0]
        conds.append({**text, **family.encode_conditioning(pipe, images, num_frames), **images})
    return conds


def encoded(
    name: str, captions: list[str] = CAPTIONS, size: tuple[int, int] | None = None, num_frames: int = 1
) -> list[Conditioning]:
    """Encode captions for an image or video of `size` pixels, by default the row's first."""
    return encode_all(name, tiny.tiny_pipeline(name), captions, size, num_frames)

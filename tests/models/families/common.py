"""What the contract tests share: captions, times, noise, one parametrisation over all rows."""

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
    """The family that takes a row's pipeline, without saving it."""
    kind = type(tiny.tiny_pipeline(name)).__name__
    return next(family for family in families.FAMILIES if kind in family.pipelines)


def times(family: Family) -> torch.Tensor:
    """An early and a late time, in scheduler units."""
    return torch.tensor([321, 987]) if family.objective == "ddpm" else torch.tensor([123.4, 876.5])


def noise_for(name: str, size: tuple[int, int] | None = None, rows: int = 1, seed: int = 1) -> torch.Tensor:
    """Noise (rows, C, H, W) for a picture of `size` pixels, by default the row's first."""
    shape = family_of(name).latent_shape(tiny.tiny_pipeline(name), *(size or tiny.ROWS[name].sizes[0]))
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


def pictures_for(name: str, size: tuple[int, int] | None = None, row: int = 0) -> dict[str, torch.Tensor]:
    """The pictures that a row's family takes, of `size` pixels; others for every `row`."""
    width, height = size or tiny.ROWS[name].sizes[0]
    generator, made = torch.Generator().manual_seed(row), {}
    family = family_of(name)
    for kind in family.takes if tiny.ROWS[name].shown else ():
        shape = (2 if family.several else 1, 1 if kind == "mask" else 3, height, width)
        made[kind] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    if "mask" in made:
        made["mask"][:] = 0
        made["mask"][..., : height // 2, (row + 1) * width // 4 :] = 255
    return made


def conditions(
    name: str, pipe: Any, captions: list[str], size: tuple[int, int] | None = None
) -> list[Conditioning]:
    """All that a row's family predicts and draws from: text, and of each caption's own pictures."""
    family, size, found = family_of(name), size or tiny.ROWS[name].sizes[0], []
    for row, caption in enumerate(captions):
        pictures = pictures_for(name, size, row)
        text = family.encode(pipe, [caption], size, pictures)[0]
        found.append({**text, **family.condition(pipe, pictures), **pictures})
    return found


def encoded(
    name: str, captions: list[str] = CAPTIONS, size: tuple[int, int] | None = None
) -> list[Conditioning]:
    """Conditions of captions for a picture of `size` pixels, by default the row's first."""
    return conditions(name, tiny.tiny_pipeline(name), captions, size)

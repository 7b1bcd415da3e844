"""What the contract tests share: captions, times, noise, one parametrisation over all rows."""

from __future__ import annotations

import pytest
import torch

from lorakit import families
from lorakit.families import Cond, Family
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


def encoded(name: str, captions: list[str] = CAPTIONS, size: tuple[int, int] | None = None) -> list[Cond]:
    """Conditions of captions for a picture of `size` pixels, by default the row's first."""
    return family_of(name).encode(tiny.tiny_pipeline(name), captions, size or tiny.ROWS[name].sizes[0])

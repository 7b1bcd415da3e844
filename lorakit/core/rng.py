"""Randomness as a pure function of (seed, purpose, step, sample).

No global generator is read, saved or restored, so resuming, sampling or another number of processes cannot
shift it.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, *parts: int | str) -> int:
    """A 63-bit number from the seed, what it is for, and where: SHA-256 of the parts."""
    text = "\x1f".join([str(seed), purpose, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def epoch_permutation(count: int, seed: int, epoch: int) -> list[int]:
    """The order of `count` images in an epoch."""
    order = list(range(count))
    random.Random(derive_seed(seed, "order", epoch)).shuffle(order)
    return order


def generator(seed: int, purpose: str, *parts: int | str) -> torch.Generator:
    """A fresh CPU generator for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, purpose, *parts))


def keyed_normal(shape: tuple[int, ...], seed: int, purpose: str, *parts: int | str) -> torch.Tensor:
    """Standard normal float32 numbers on the CPU."""
    import torch

    return torch.randn(shape, generator=generator(seed, purpose, *parts))


def keyed_uniform(seed: int, purpose: str, *parts: int | str) -> float:
    """One number in [0, 1)."""
    return derive_seed(seed, purpose, *parts) / 2**63

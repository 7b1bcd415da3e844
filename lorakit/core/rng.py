"""Keyed random numbers: a pure function of (seed, purpose, step, sample).

No global generator is used, so resuming, sampling or another number of processes changes no random number.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, *parts: int | str) -> int:
    """Return a 63-bit number from the SHA-256 of seed, purpose and further parts."""
    text = "\x1f".join([str(seed), purpose, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def epoch_permutation(count: int, seed: int, epoch: int) -> list[int]:
    """Return the order of `count` images in an epoch."""
    order = list(range(count))
    random.Random(derive_seed(seed, "order", epoch)).shuffle(order)
    return order


def generator(seed: int, purpose: str, *parts: int | str) -> torch.Generator:
    """Return a new CPU generator for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, purpose, *parts))


def keyed_normal(shape: tuple[int, ...], seed: int, purpose: str, *parts: int | str) -> torch.Tensor:
    """Return standard normal float32 numbers of this shape on the CPU."""
    import torch

    return torch.randn(shape, generator=generator(seed, purpose, *parts))


def keyed_uniform(seed: int, purpose: str, *parts: int | str) -> float:
    """Return one number in [0, 1)."""
    return derive_seed(seed, purpose, *parts) / 2**63

"""Matrices of low rank: norms from the factors alone, and the nearest low-rank form of any change."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lorakit.adapters.formats.delta_weights import DeltaWeight, LohaDelta, LokrDelta, LoraDelta
from lorakit.core import rng

EXACT_TOLERANCE = 1e-6  # of the Frobenius norm: what float32 factors reach
DEFAULT_MAX_RANK = 128  # the rank above which a low-rank form is cut off, where the caller names none
_MAX_FULL_SVD_SIDE = 1024  # the smaller side above which the decomposition is a randomised one


def relative_error(change: DeltaWeight, other: DeltaWeight, base: torch.Tensor | None = None) -> float:
    """Frobenius norm of the difference of two weight changes, over the first one's; 0 when both are zero.

    Of two LoRA changes computed from the factors, for the full matrices of a large model take gigabytes.
    """
    if isinstance(change, LoraDelta) and isinstance(other, LoraDelta):
        size, difference = sum_norm([change]), sum_norm([change, other.scaled(-1)])
    else:
        one, two = change.delta(base), other.delta(base)
        size = float(torch.linalg.vector_norm(one))
        difference = float(torch.linalg.vector_norm(one - two.reshape(one.shape)))
    return difference / size if size else float(difference > 0)


def sum_norm(terms: Sequence[LoraDelta]) -> float:
    """Norm of the sum of low-rank terms: after two QR factorisations only small triangles are multiplied."""
    up, down = _stack_factors(terms)
    small = torch.linalg.qr(up).R @ torch.linalg.qr(down.T).R.T
    return float(torch.linalg.matrix_norm(small))


def _stack_factors(terms: Sequence[LoraDelta]) -> tuple[torch.Tensor, torch.Tensor]:
    up = torch.cat([term.up.double().flatten(1) * term.scale for term in terms], dim=1)  # (out, all ranks)
    down = torch.cat([term.down.double().flatten(1) for term in terms])  # (all ranks, in)
    return up, down


def singular_values(terms: Sequence[LoraDelta]) -> torch.Tensor:
    """Singular values of the sum of low-rank terms, largest first, float64."""
    up, down = _stack_factors(terms)
    return torch.linalg.svdvals(torch.linalg.qr(up).R @ torch.linalg.qr(down.T).R.T)


def concatenate(terms: Sequence[LoraDelta]) -> LoraDelta:
    """The exact sum of LoRA changes of one weight; the ranks add up."""
    down = torch.cat([term.down.float() for term in terms])
    up = torch.cat([term.up.float() * term.scale for term in terms], dim=1)
    return LoraDelta(down, up)


def reduce_rank(change: LoraDelta, rank: int | None = None, energy: float = 1.0) -> LoraDelta:
    """The nearest LoRA of at most `rank`, or the smallest that keeps `energy` of the squared norm.

    The scale is multiplied in; the two factors share the singular values evenly.
    """
    up, down = _stack_factors([change])
    left, right = torch.linalg.qr(up), torch.linalg.qr(down.T)
    u, s, vh = torch.linalg.svd(left.R @ right.R.T)
    return _factors(left.Q @ u, s, vh @ right.Q.T, change.shape, _needed_rank(s, rank, energy))


def to_lora(change: DeltaWeight, base: torch.Tensor | None = None, cap: int | None = None) -> LoraDelta:
    """Any change as a LoRA: exact where the rank allows it, else the nearest of rank `cap`."""
    if isinstance(change, LoraDelta):
        return change
    most = cap or DEFAULT_MAX_RANK
    exact = exact_lora(change)
    if exact is not None and exact.rank <= most:
        return exact
    return nearest_lora(change.delta(base), most)


def exact_lora(change: DeltaWeight) -> LoraDelta | None:
    """LoHa and LoKr as LoRA without loss: the ranks of their two factors multiply. None where none is."""
    if isinstance(change, LohaDelta) and len(change.shape) == 2:
        one, two = change.one, change.two
        up = (one.up.float()[:, :, None] * two.up.float()[:, None]).flatten(1)  # (out, r1 r2)
        down = (one.down.float()[:, None] * two.down.float()[None]).flatten(0, 1)  # (r1 r2, in)
        return LoraDelta(down, up, change.scale * one.scale * two.scale)
    if isinstance(change, LokrDelta) and len(change.shape) == 2:
        one, two = _as_lora_factors(change.one), _as_lora_factors(change.two)
        up = torch.kron(one.up.contiguous(), two.up.contiguous())
        down = torch.kron(one.down.contiguous(), two.down.contiguous())
        return LoraDelta(down, up, change.scale * one.scale * two.scale)
    return None


def _as_lora_factors(matrix: DeltaWeight) -> LoraDelta:
    """A matrix as a product with itself on one side, the shorter."""
    if isinstance(matrix, LoraDelta):
        return LoraDelta(matrix.down.float(), matrix.up.float(), matrix.scale)
    full = matrix.delta()
    if full.shape[0] <= full.shape[1]:
        return LoraDelta(full, torch.eye(len(full)))
    return LoraDelta(torch.eye(full.shape[1]), full)


def nearest_lora(delta: torch.Tensor, rank: int | None = None, energy: float = 1.0) -> LoraDelta:
    """The nearest LoRA of a difference (out, in, ...), of at most `rank` or keeping `energy` of its square.

    Large matrices with a small rank asked for are decomposed by random projection with power steps
    (arXiv:0909.4061), seeded, so that the same difference gives the same bytes.
    """
    matrix = delta.float().flatten(1)
    shortest = min(matrix.shape)
    if rank is None or shortest <= _MAX_FULL_SVD_SIDE or 4 * rank > shortest:
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    else:
        probe = rng.keyed_normal((matrix.shape[1], rank + 16), 0, "decompose")
        basis = torch.linalg.qr(matrix @ probe).Q
        for _ in range(4):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
        u, s, vh = torch.linalg.svd((basis.T @ matrix).double(), full_matrices=False)
        u = basis.double() @ u
    return _factors(u, s, vh, tuple(delta.shape), _needed_rank(s, rank, energy))


def _needed_rank(s: torch.Tensor, rank: int | None, energy: float) -> int:
    """How many singular values to keep; those below float32's precision never count."""
    squares = s.square()
    total = float(squares.sum())
    if not total:
        return 1
    lost = squares.flip(0).cumsum(0).flip(0)  # what is lost by keeping i values
    bound = max((1 - energy) * total, EXACT_TOLERANCE**2 * total)
    needed = int((lost > bound).sum())
    return max(1, min(needed, rank or needed))


def _factors(
    u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor, shape: tuple[int, ...], rank: int
) -> LoraDelta:
    root = s[:rank].sqrt()
    sign = torch.where(u[:, :rank].sum(0) < 0, -1.0, 1.0).to(u.dtype)  # one of the two, on every machine
    up, down = u[:, :rank] * root * sign, (root * sign)[:, None] * vh[:rank]
    kernel = shape[2:]
    up = up.reshape(shape[0], rank, *[1] * len(kernel))
    return LoraDelta(down.reshape(rank, *shape[1:]).float().contiguous(), up.float().contiguous())


def retained_energy(full: Sequence[float] | torch.Tensor, rank: int) -> float:
    """Part of the squared norm that the first `rank` singular values hold."""
    squares = [float(value) ** 2 for value in full]
    total = math.fsum(squares)
    return math.fsum(squares[:rank]) / total if total else 1.0

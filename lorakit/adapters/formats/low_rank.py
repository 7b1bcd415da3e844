"""Low-rank matrices: norms computed from the factors, and the nearest LoRA of any delta weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorakit.adapters.formats.delta_weights import DeltaWeight, LohaDelta, LokrDelta, LoraDelta
from lorakit.core import rng

EXACT_TOLERANCE = 1e-6  # of the Frobenius norm: the precision of float32 factors
DEFAULT_MAX_RANK = 128  # of a LoRA that approximates another method
_MAX_FULL_SVD_SIDE = 1024  # matrices whose smaller side is larger get a randomized SVD


def relative_error(delta: DeltaWeight, other: DeltaWeight, base: torch.Tensor | None = None) -> float:
    """Return the Frobenius norm of the difference of two delta weights, over the first one's norm.

    It is 0 if both are zero. Two LoRA deltas are compared by their factors: the dense matrices of a large
    model take gigabytes.
    """
    if isinstance(delta, LoraDelta) and isinstance(other, LoraDelta):
        size, difference = sum_norm([delta]), sum_norm([delta, other.scaled(-1)])
    else:
        matrix, other_matrix = delta.dense(base), other.dense(base)
        size = float(torch.linalg.vector_norm(matrix))
        difference = float(torch.linalg.vector_norm(matrix - other_matrix.reshape(matrix.shape)))
    return difference / size if size else float(difference > 0)


def sum_norm(terms: Sequence[LoraDelta]) -> float:
    """Return the Frobenius norm of a sum of LoRA deltas, from the triangles of two QR decompositions."""
    up, down = _stack_factors(terms)
    small = torch.linalg.qr(up).R @ torch.linalg.qr(down.T).R.T
    return float(torch.linalg.matrix_norm(small))


def _stack_factors(terms: Sequence[LoraDelta]) -> tuple[torch.Tensor, torch.Tensor]:
    up = torch.cat([term.up.double().flatten(1) * term.scale for term in terms], dim=1)  # (out, all ranks)
    down = torch.cat([term.down.double().flatten(1) for term in terms])  # (all ranks, in)
    return up, down


def concatenate(terms: Sequence[LoraDelta]) -> LoraDelta:
    """Return the exact sum of LoRA deltas of one weight; its rank is the sum of the ranks."""
    down = torch.cat([term.down.float() for term in terms])
    up = torch.cat([term.up.float() * term.scale for term in terms], dim=1)
    return LoraDelta(down, up)


def reduce_rank(delta: LoraDelta, rank: int | None = None, energy: float = 1.0) -> LoraDelta:
    """Return the nearest LoRA of at most `rank`, or the smallest that keeps `energy` of the squared norm.

    The scale is multiplied in; the singular values are shared evenly between the two factors.
    """
    up, down = _stack_factors([delta])
    left, right = torch.linalg.qr(up), torch.linalg.qr(down.T)
    u, s, vh = torch.linalg.svd(left.R @ right.R.T)
    return _factors(left.Q @ u, s, vh @ right.Q.T, delta.shape, _needed_rank(s, rank, energy))


def to_lora(delta: DeltaWeight, base: torch.Tensor | None = None, max_rank: int | None = None) -> LoraDelta:
    """Return any delta weight as a LoRA: exact if `max_rank` allows it, else the nearest one of that rank."""
    if isinstance(delta, LoraDelta):
        return delta
    rank_limit = max_rank or DEFAULT_MAX_RANK
    exact = exact_lora(delta)
    if exact is not None and exact.rank <= rank_limit:
        return exact
    return nearest_lora(delta.dense(base), rank_limit)


def exact_lora(delta: DeltaWeight) -> LoraDelta | None:
    """Return LoHa or LoKr as an exact LoRA, whose rank is the product of the ranks of their factors.

    None for other methods and for convolutions.
    """
    if isinstance(delta, LohaDelta) and len(delta.shape) == 2:
        first, second = delta.first, delta.second
        up = (first.up.float()[:, :, None] * second.up.float()[:, None]).flatten(1)  # (out, r1 r2)
        down = (first.down.float()[:, None] * second.down.float()[None]).flatten(0, 1)  # (r1 r2, in)
        return LoraDelta(down, up, delta.scale * first.scale * second.scale)
    if isinstance(delta, LokrDelta) and len(delta.shape) == 2:
        first, second = _as_lora_factors(delta.first), _as_lora_factors(delta.second)
        up = torch.kron(first.up.contiguous(), second.up.contiguous())
        down = torch.kron(first.down.contiguous(), second.down.contiguous())
        return LoraDelta(down, up, delta.scale * first.scale * second.scale)
    return None


def _as_lora_factors(matrix: DeltaWeight) -> LoraDelta:
    """Return a matrix as the product of itself and the identity on its shorter side."""
    if isinstance(matrix, LoraDelta):
        return LoraDelta(matrix.down.float(), matrix.up.float(), matrix.scale)
    dense = matrix.dense()
    if dense.shape[0] <= dense.shape[1]:
        return LoraDelta(dense, torch.eye(len(dense)))
    return LoraDelta(torch.eye(dense.shape[1]), dense)


def nearest_lora(difference: torch.Tensor, rank: int | None = None, energy: float = 1.0) -> LoraDelta:
    """Return the nearest LoRA of a dense difference (out, in, ...).

    It has at most `rank`, or the smallest rank that keeps `energy` of the squared norm. Large matrices and a
    small rank use a randomized SVD with power iterations (arXiv:0909.4061), seeded, so that the same
    difference gives the same bytes.
    """
    matrix = difference.float().flatten(1)
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
    return _factors(u, s, vh, tuple(difference.shape), _needed_rank(s, rank, energy))


def _needed_rank(s: torch.Tensor, rank: int | None, energy: float) -> int:
    """Return the number of singular values to keep, without those below the precision of float32."""
    squares = s.square()
    total = float(squares.sum())
    if not total:
        return 1
    lost = squares.flip(0).cumsum(0).flip(0)  # squared norm lost when i values are kept
    bound = max((1 - energy) * total, EXACT_TOLERANCE**2 * total)
    needed = int((lost > bound).sum())
    return max(1, min(needed, rank or needed))


def _factors(
    u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor, shape: tuple[int, ...], rank: int
) -> LoraDelta:
    root = s[:rank].sqrt()
    sign = torch.where(u[:, :rank].sum(0) < 0, -1.0, 1.0).to(u.dtype)  # the same sign on every machine
    up, down = u[:, :rank] * root * sign, (root * sign)[:, None] * vh[:rank]
    kernel = shape[2:]
    up = up.reshape(shape[0], rank, *[1] * len(kernel))
    return LoraDelta(down.reshape(rank, *shape[1:]).float().contiguous(), up.float().contiguous())

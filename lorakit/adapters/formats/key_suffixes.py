"""The tensors of one module's delta weight by the suffix of their key, and the delta that they make.

Every trainer names the same few tensors in its own way; here each gets one name, its part. A key that is not
in this table is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from lorakit.adapters.formats.delta_weights import (
    DeltaWeight,
    DoraDelta,
    FullDelta,
    LohaDelta,
    LokrDelta,
    LoraDelta,
    OftDelta,
)
from lorakit.core.errors import DataError

ModuleTensors = dict[str, torch.Tensor]
"""Tensors of one module by part."""
ScaleForRank = Callable[[int], float]
"""rank -> scale, for a file without `alpha` keys."""

_SUFFIXES = {
    "down": ("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "lora.down.weight", "lora_A",
             "lora_linear_layer.down.weight", "lora_A.default"),
    "up": ("lora_B.weight", "lora_B.default.weight", "lora_up.weight", "lora.up.weight", "lora_B",
           "lora_linear_layer.up.weight", "lora_B.default"),
    "mid": ("lora_mid.weight",),
    "alpha": ("alpha",),
    "new_shape": ("reshape_weight",),
    "dora_scale": ("dora_scale",),
    "magnitude": ("lora_magnitude_vector", "lora_magnitude_vector.weight",
                  "lora_magnitude_vector.default.weight", "lora_magnitude_vector.default", "magnitude"),
    "full": ("diff", "diff.weight"),
    "rotation": ("oft_R.weight", "oft_R.default.weight"),
    "rotation_scaled": ("oft_R.scaled_oft",),
    "blocks": ("oft_blocks",),
    "blocks_scale": ("rescale",),
}  # fmt: skip
_SUFFIXES |= {f"hada_{part}": (f"hada_{part}",) for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")}
_SUFFIXES |= {
    f"lokr_{part}": (f"lokr_{part}",) for part in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2")
}
_PART_BY_SUFFIX = {ending: part for part, endings in _SUFFIXES.items() for ending in endings}
_PART_BY_SUFFIX |= {
    f"{e}.default": p for e, p in list(_PART_BY_SUFFIX.items()) if e.startswith(("hada_", "lokr_"))
}
_KEY = re.compile(
    rf"(.+?)\.({'|'.join(re.escape(e) for e in sorted(_PART_BY_SUFFIX, key=len, reverse=True))})"
)
_LEGACY_KEY = re.compile(r"(.+)_lora\.(down|up)\.weight")  # attention processors of diffusers before 0.20


@dataclass(frozen=True)
class TensorKey:
    """A key of an adapter file: the stem that names the module, and the part that the tensor is of it."""

    stem: str
    part: str


def group_by_module(tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, ModuleTensors]:
    """Group tensors by the stem of their key, then by part; DataError for an unknown or repeated key."""
    by_module: dict[str, ModuleTensors] = {}
    for name in sorted(tensors):
        key = _split_key(name, where)
        parts = by_module.setdefault(key.stem, {})
        if key.part in parts:
            raise DataError(f"two keys name the same tensor, one is {name}", where=where)
        parts[key.part] = tensors[name]
    return by_module


def _split_key(name: str, where: str) -> TensorKey:
    if match := _KEY.fullmatch(name):
        return TensorKey(match[1], _PART_BY_SUFFIX[match[2]])
    if match := _LEGACY_KEY.fullmatch(name):
        stem = match[1].replace(".processor", "")
        return TensorKey(stem + (".0" if stem.endswith("to_out") else ""), match[2])
    raise DataError(
        f"unknown key: {name[:200]}",
        where=where,
        remedy="lorakit reads LoRA, DoRA, LoHa, LoKr and OFT as diffusers, peft, kohya, ComfyUI and LyCORIS "
        "write them; it does not read deltas of biases and norms",
    )


def looks_like_adapter(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Return True if any key is one of an adapter."""
    return any(_KEY.fullmatch(key) or _LEGACY_KEY.fullmatch(key) for key in tensors)


def build_delta(parts: ModuleTensors, scaling: ScaleForRank, where: str) -> DeltaWeight:
    """Build a module's delta weight from its tensors; DataError if they are incomplete or do not fit."""
    remaining = dict(parts)
    alpha = remaining.pop("alpha", None)
    remaining.pop("new_shape", None)  # for ComfyUI, whose first layer may be narrower than the trained one
    if alpha is not None and alpha.numel() != 1:
        raise DataError("alpha must be a single number", where=where)
    alpha_value = None if alpha is None else float(alpha)
    magnitude = remaining.pop("dora_scale", None)
    peft_magnitude = remaining.pop("magnitude", None)
    builder = next(
        (build for prefix, build in _BUILDERS.items() if any(p.startswith(prefix) for p in remaining)), None
    )
    try:
        if builder is None:
            raise DataError("a magnitude or an alpha without the delta it belongs to", where=where)
        delta = builder(remaining, alpha_value, scaling, where)
        if remaining:
            raise DataError(f"a tensor of another adapter method: {sorted(remaining)[0]}", where=where)
        if peft_magnitude is not None:  # one number for each output, whatever its shape
            magnitude = peft_magnitude.reshape(-1, *[1] * (len(delta.shape) - 1))
        if magnitude is not None:
            delta = _dora(delta, magnitude, where)
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"the shapes do not fit together: {error}", where=where) from error
    return delta


def _lora(parts: ModuleTensors, alpha: float | None, scaling: ScaleForRank, where: str) -> DeltaWeight:
    if "down" not in parts or "up" not in parts:
        raise DataError("one of the two LoRA factors is missing", where=where)
    down, up, mid = parts.pop("down"), parts.pop("up"), parts.pop("mid", None)
    if down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0] or not down.shape[0]:
        raise DataError(
            f"the shapes {tuple(down.shape)} and {tuple(up.shape)} cannot be multiplied", where=where
        )
    if mid is not None:  # LyCORIS' convolution in three steps: 1 x 1, the kernel, 1 x 1
        down = torch.einsum("mn...,ni->mi...", mid.float(), down.float().flatten(1))
    if any(size != 1 for size in up.shape[2:]):
        raise DataError("the second factor of a convolution must have a 1 x 1 kernel", where=where)
    return LoraDelta(down, up, _scale(alpha, down.shape[0], scaling))


def _loha(parts: ModuleTensors, alpha: float | None, scaling: ScaleForRank, where: str) -> DeltaWeight:
    sides = []
    for number in (1, 2):
        a, b = parts.pop(f"hada_w{number}_a"), parts.pop(f"hada_w{number}_b")
        core = parts.pop(f"hada_t{number}", None)
        if core is None:
            sides.append(LoraDelta(b, a))
        else:  # a (rank, out), b (rank, in), core (rank, rank, kernel)
            sides.append(LoraDelta(torch.einsum("ij...,jr->ir...", core.float(), b.float()), a.mT))
    if sides[0].shape != sides[1].shape:
        raise ValueError(f"{sides[0].shape} and {sides[1].shape}")
    return LohaDelta(sides[0], sides[1], _scale(alpha, sides[0].rank, scaling))


def _lokr(parts: ModuleTensors, alpha: float | None, scaling: ScaleForRank, where: str) -> DeltaWeight:
    first, second = _lokr_factor(parts, 1), _lokr_factor(parts, 2)
    rank = second.rank or first.rank
    if rank:
        return LokrDelta(first, second, _scale(alpha, rank, scaling))
    # Two dense factors: LyCORIS writes an alpha but ignores it.
    return LokrDelta(first, second, 1.0 if alpha is not None else scaling(0))


def _lokr_factor(parts: ModuleTensors, number: int) -> DeltaWeight:
    dense = parts.pop(f"lokr_w{number}", None)
    if dense is not None:
        return FullDelta(dense)
    a, b = parts.pop(f"lokr_w{number}_a"), parts.pop(f"lokr_w{number}_b")
    core = parts.pop("lokr_t2", None) if number == 2 else None
    if core is None:
        return LoraDelta(b, a)
    return LoraDelta(torch.einsum("ij...,jr->ir...", core.float(), b.float()), a.mT)


def _full(parts: ModuleTensors, alpha: float | None, scaling: ScaleForRank, where: str) -> DeltaWeight:
    return FullDelta(parts.pop("full"))


def _peft_oft(parts: ModuleTensors, alpha: float | None, scaling: ScaleForRank, where: str) -> DeltaWeight:
    """Build peft's OFT: angles are the upper triangle of a skew matrix, its Cayley transform is a series of
    five terms.

    OneTrainer marks files whose angles must be divided by 2 sqrt(size - 1).
    """
    angles = parts.pop("rotation").float()
    size = round((1 + (1 + 8 * angles.shape[1]) ** 0.5) / 2)
    if bool(parts.pop("rotation_scaled", torch.zeros(1)).any()):
        angles = angles / (2 * (size - 1) ** 0.5)
    row, column = torch.triu_indices(size, size, 1)
    skew = angles.new_zeros(len(angles), size, size)
    skew[:, row, column] = angles
    skew = skew - skew.mT
    square = skew @ skew
    rotation = torch.eye(size) + 2 * skew + 2 * square + 2 * square @ skew + square @ square
    return OftDelta(rotation.mT.contiguous(), "inputs", angles=angles)


def _lycoris_oft(parts: ModuleTensors, alpha: float | None, scaling: ScaleForRank, where: str) -> DeltaWeight:
    """Build LyCORIS' OFT: the exact Cayley transform of blocks of outputs; alpha times the number of outputs
    bounds the norm."""
    blocks = parts.pop("blocks").float()
    if blocks.ndim != 3:
        raise DataError(
            "lorakit cannot read butterfly OFT (BOFT)", where=where, remedy="train diagonal OFT instead"
        )
    skew = blocks - blocks.mT
    if alpha:
        length = skew.norm() + 1e-8
        skew = skew * min(1.0, alpha * blocks.shape[0] * blocks.shape[1] / float(length))
    identity = torch.eye(blocks.shape[-1])
    rotation = torch.linalg.solve(identity - skew, identity + skew, left=False)
    return OftDelta(rotation.mT.contiguous(), "outputs", parts.pop("blocks_scale", None))


def _dora(delta: DeltaWeight, magnitude: torch.Tensor, where: str) -> DoraDelta:
    """Build a DoRA delta; LyCORIS stores magnitudes along the axis they belong to."""
    allowed = ((delta.shape[0], 1), (1, delta.shape[1]))
    if tuple(magnitude.shape[:2]) not in allowed or any(size != 1 for size in magnitude.shape[2:]):
        raise DataError(
            f"a magnitude of shape {tuple(magnitude.shape)} does not fit a weight of {delta.shape}",
            where=where,
        )
    return DoraDelta(delta, magnitude)


def _scale(alpha: float | None, rank: int, scaling: ScaleForRank) -> float:
    return scaling(rank) if alpha is None else alpha / rank


_BUILDERS: dict[str, Callable[[ModuleTensors, float | None, ScaleForRank, str], DeltaWeight]] = {
    "hada_": _loha,
    "lokr_": _lokr,
    "rotation": _peft_oft,
    "blocks": _lycoris_oft,
    "full": _full,
    "down": _lora,
    "up": _lora,
}

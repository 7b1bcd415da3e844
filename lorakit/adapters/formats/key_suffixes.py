"""The parts of one module's change as adapter files spell them, and the change that they make.

Every writer names the same few tensors in its own way; here they get one name each. What is in a file and
not in this table is an error that names the key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

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
ScaleForRank = Callable[[int], float]
"""rank -> scale, for a file without `alpha` keys."""

_SUFFIXES = {
    "down": ("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "lora.down.weight", "lora_A",
             "lora_linear_layer.down.weight", "lora_A.default"),
    "up": ("lora_B.weight", "lora_B.default.weight", "lora_up.weight", "lora.up.weight", "lora_B",
           "lora_linear_layer.up.weight", "lora_B.default"),
    "mid": ("lora_mid.weight",),
    "alpha": ("alpha",),
    "dora_scale": ("dora_scale",),
    "magnitude": ("lora_magnitude_vector", "lora_magnitude_vector.weight",
                  "lora_magnitude_vector.default.weight", "lora_magnitude_vector.default", "magnitude"),
    "full": ("diff", "diff.weight"),
    "rotation": ("oft_R.weight", "oft_R.default.weight"),
    "rotation_scaled": ("oft_R.scaled_oft",),
    "blocks": ("oft_blocks",),
    "blocks_factors": ("rescale",),
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


def group_by_module(tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, ModuleTensors]:
    """Tensors by the stem of their key and the part that they are; DataError for a key that is unknown."""
    found: dict[str, ModuleTensors] = {}
    for key in sorted(tensors):
        stem, part = _split_key(key, where)
        if part in found.setdefault(stem, {}):
            raise DataError(f"{key} says again what another key says", where=where)
        found[stem][part] = tensors[key]
    return found


def _split_key(key: str, where: str) -> tuple[str, str]:
    if match := _KEY.fullmatch(key):
        return match[1], _PART_BY_SUFFIX[match[2]]
    if match := _LEGACY_KEY.fullmatch(key):
        stem = match[1].replace(".processor", "")
        return stem + (".0" if stem.endswith("to_out") else ""), match[2]
    raise DataError(
        f"a key that is not understood: {key[:200]}",
        where=where,
        remedy="readable are LoRA, DoRA, LoHa, LoKr and OFT as diffusers, peft, kohya, ComfyUI and LyCORIS "
        "write them; changes of biases and norms are not",
    )


def looks_like_adapter(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether any key is one of an adapter."""
    return any(_KEY.fullmatch(key) or _LEGACY_KEY.fullmatch(key) for key in tensors)


def build_delta(parts: ModuleTensors, scaling: ScaleForRank, where: str) -> DeltaWeight:
    """The change that a module's parts make; DataError where they are not whole or do not fit together."""
    left = dict(parts)
    alpha = left.pop("alpha", None)
    if alpha is not None and alpha.numel() != 1:
        raise DataError("alpha is not one number", where=where)
    stated = None if alpha is None else float(alpha)
    dora = left.pop("dora_scale", None)
    magnitude = left.pop("magnitude", None)
    maker = next((make for name, make in _BUILDERS.items() if any(p.startswith(name) for p in left)), None)
    try:
        if maker is None:
            raise DataError("a magnitude or an alpha without the change it belongs to", where=where)
        change = maker(left, stated, scaling, where)
        if left:
            raise DataError(f"a part that belongs to another kind of adapter: {sorted(left)[0]}", where=where)
        if magnitude is not None:  # peft's: one number an output, whatever the shape
            dora = magnitude.reshape(-1, *[1] * (len(change.shape) - 1))
        if dora is not None:
            change = _dora(change, dora, where)
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"shapes that do not go together: {error}", where=where) from error
    return change


def _lora(parts: ModuleTensors, alpha: float | None, scaling: ScaleForRank, where: str) -> DeltaWeight:
    if "down" not in parts or "up" not in parts:
        raise DataError("only one half of the adapter is there", where=where)
    down, up, mid = parts.pop("down"), parts.pop("up"), parts.pop("mid", None)
    if down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0] or not down.shape[0]:
        raise DataError(f"shapes {tuple(down.shape)} and {tuple(up.shape)} do not multiply", where=where)
    if mid is not None:  # LyCORIS' convolution in three steps: 1 x 1, the kernel, 1 x 1
        down = torch.einsum("mn...,ni->mi...", mid.float(), down.float().flatten(1))
    if any(size != 1 for size in up.shape[2:]):
        raise DataError("the second factor of a convolution has a kernel", where=where)
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
    one, two = _lokr_factor(parts, 1), _lokr_factor(parts, 2)
    rank = two.rank or one.rank
    if rank:
        return LokrDelta(one, two, _scale(alpha, rank, scaling))
    # Two whole factors: LyCORIS ignores alpha then, and writes one all the same.
    return LokrDelta(one, two, 1.0 if alpha is not None else scaling(0))


def _lokr_factor(parts: ModuleTensors, number: int) -> DeltaWeight:
    whole = parts.pop(f"lokr_w{number}", None)
    if whole is not None:
        return FullDelta(whole)
    a, b = parts.pop(f"lokr_w{number}_a"), parts.pop(f"lokr_w{number}_b")
    core = parts.pop("lokr_t2", None) if number == 2 else None
    if core is None:
        return LoraDelta(b, a)
    return LoraDelta(torch.einsum("ij...,jr->ir...", core.float(), b.float()), a.mT)


def _full(parts: ModuleTensors, alpha: float | None, scaling: ScaleForRank, where: str) -> DeltaWeight:
    return FullDelta(parts.pop("full"))


def _peft_oft(parts: ModuleTensors, alpha: float | None, scaling: ScaleForRank, where: str) -> DeltaWeight:
    """peft's angles, as the upper triangle of a skew matrix; its transform is a series of five terms.

    OneTrainer marks files whose angles are to be divided by 2 sqrt(size - 1).
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
    turn = torch.eye(size) + 2 * skew + 2 * square + 2 * square @ skew + square @ square
    return OftDelta(turn.mT.contiguous(), "inputs")


def _lycoris_oft(parts: ModuleTensors, alpha: float | None, scaling: ScaleForRank, where: str) -> DeltaWeight:
    """LyCORIS' blocks: the exact Cayley transform, on the outputs; alpha times the outputs bounds it."""
    blocks = parts.pop("blocks").float()
    if blocks.ndim != 3:
        raise DataError("butterfly OFT (BOFT) is not read", where=where, remedy="diagonal OFT is")
    skew = blocks - blocks.mT
    if alpha:
        length = skew.norm() + 1e-8
        skew = skew * min(1.0, alpha * blocks.shape[0] * blocks.shape[1] / float(length))
    one = torch.eye(blocks.shape[-1])
    turn = torch.linalg.solve(one - skew, one + skew, left=False)
    return OftDelta(turn.mT.contiguous(), "outputs", parts.pop("blocks_factors", None))


def _dora(change: DeltaWeight, magnitude: torch.Tensor, where: str) -> DoraDelta:
    """LyCORIS' magnitudes lie along the axis that they belong to."""
    allowed = ((change.shape[0], 1), (1, change.shape[1]))
    if tuple(magnitude.shape[:2]) not in allowed or any(size != 1 for size in magnitude.shape[2:]):
        raise DataError(f"magnitude {tuple(magnitude.shape)} for {change.shape}", where=where)
    return DoraDelta(change, magnitude)


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

"""The numbers of a module's adapter by a consumer's convention: its kind, and the delta weight of each
member."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from lorakit.adapters.formats.consumers.layers import Layer
from lorakit.adapters.formats.consumers.rules import LoaderRule
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

Parts = Mapping[str, torch.Tensor]

_NEEDED = {
    "lora": ({"up", "down"},),
    "loha": ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},),
    "lokr": tuple(
        {*first, *second}
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    ),
    "full": ({"full"},),
    "set": ({"set"},),
    "oft": ({"oft_blocks"},),
    "glora": ({"glora_a1", "glora_a2", "glora_b1", "glora_b2"},),
    "ia3": ({"ia3"},),
    "bias": ({"bias"},),
}


def kind_of(parts: set[str]) -> str | None:
    """Return the kind of adapter that a module's parts make; None if factors are missing."""
    for kind, choices in _NEEDED.items():
        if any(needed <= parts for needed in choices):
            return "dora" if kind == "lora" and "magnitude" in parts else kind
    return None


def shape_problem(kind: str, parts: Parts) -> str | None:
    """Return the reason for which a module's tensors do not fit together; None if they do."""
    if kind in ("lora", "dora"):
        up, down = parts["up"], parts["down"]
        if up.ndim < 2 or down.ndim < 2 or up.shape[1] != down.shape[0]:
            return f"factors of shapes {tuple(up.shape)} and {tuple(down.shape)} cannot be multiplied"
    if kind == "loha":
        first = (len(parts["hada_w1_a"]), parts["hada_w1_b"].shape[-1])
        second = (len(parts["hada_w2_a"]), parts["hada_w2_b"].shape[-1])
        if first != second and "hada_t1" not in parts:
            return f"matrices of shapes {first} and {second} cannot be multiplied elementwise"
    return None


def build_delta(kind: str, parts: Parts, rule: LoaderRule, stem: str) -> DeltaWeight:
    """Return the delta weight that a consumer computes from a module's tensors.

    Raises DataError for shapes that do not fit together, and for kinds whose numbers are not modelled here.
    """
    if kind not in _BUILDERS:
        raise DataError(f"the numbers of {kind} are not known", where=stem)
    try:
        delta = _BUILDERS[kind](parts, rule)
    except (RuntimeError, IndexError, KeyError) as error:
        raise DataError(f"the shapes do not fit together: {error}", where=stem) from error
    if "magnitude" in parts:
        magnitude = parts["magnitude"].float()
        if rule.norm_of == "merged":  # peft has one number for each output, whatever the shape
            magnitude = magnitude.reshape(-1, *[1] * (len(delta.shape) - 1))
        return DoraDelta(delta, magnitude, "base" if rule.norm_of == "base" else "merged")
    return delta


def _alpha(parts: Parts, rank: int) -> float:
    return float(parts["alpha"]) / rank if "alpha" in parts else 1.0


def _lora(parts: Parts, rule: LoaderRule) -> DeltaWeight:
    up, down = parts["up"].float(), parts["down"].float()
    scale = _alpha(parts, down.shape[0])
    if "mid" in parts:  # 1 x 1, then the kernel, then 1 x 1
        down = torch.einsum("mn...,ni->mi...", parts["mid"].float(), down.flatten(1))
    return LoraDelta(down, up, scale)


def _cored(core: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> LoraDelta:
    """Return the matrix of a core tensor (rank, rank, kernel) with a (rank, out) and b (rank, in)."""
    return LoraDelta(torch.einsum("ij...,jr->ir...", core.float(), b.float()), a.float().mT)


def _loha(parts: Parts, rule: LoaderRule) -> DeltaWeight:
    sides = []
    for number in (1, 2):
        a, b = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
        core = parts.get(f"hada_t{number}")
        sides.append(LoraDelta(b.float(), a.float()) if core is None else _cored(core, a, b))
    return LohaDelta(sides[0], sides[1], _alpha(parts, len(parts["hada_w1_b"])))


def _lokr(parts: Parts, rule: LoaderRule) -> DeltaWeight:
    """Build LoKr: the alpha is divided by the rank of the last factor with one, and ignored without any."""
    factors: list[DeltaWeight] = []
    rank = 0
    for number in (1, 2):
        if (dense := parts.get(f"lokr_w{number}")) is not None:
            factors.append(FullDelta(dense))
            continue
        a, b = parts[f"lokr_w{number}_a"], parts[f"lokr_w{number}_b"]
        rank = len(b)
        core = parts.get("lokr_t2") if number == 2 else None
        factors.append(LoraDelta(b.float(), a.float()) if core is None else _cored(core, a, b))
    return LokrDelta(factors[0], factors[1], _alpha(parts, rank) if rank else 1.0)


def _full(parts: Parts, rule: LoaderRule) -> DeltaWeight:
    return FullDelta(parts["full"])


def _oft(parts: Parts, rule: LoaderRule) -> DeltaWeight:
    """Build LyCORIS' OFT as ComfyUI reads it: its alpha bounds the norm, and `rescale` has no effect."""
    blocks = parts["oft_blocks"].float()
    skew = blocks - blocks.mT
    bound = float(parts["alpha"]) if "alpha" in parts else 0.0
    if bound > 0:
        skew = skew * min(1.0, bound / float(skew.norm() + 1e-8))
    identity = torch.eye(blocks.shape[-1])
    rotation = torch.linalg.solve(identity - skew, identity + skew, left=False)
    return OftDelta(rotation.mT.contiguous(), "outputs")


_BUILDERS: dict[str, Callable[[Parts, LoaderRule], DeltaWeight]] = {
    "lora": _lora,
    "dora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
    "oft": _oft,
}


def member_deltas(delta: DeltaWeight, layer: Layer, stem: str) -> dict[str, DeltaWeight]:
    """Return the delta weight of each diffusers module of a weight, whose outputs are stacked in order."""
    modules = layer.modules
    if len(modules) == 1:
        return {modules[0]: _reordered(delta, layer)}
    sizes = member_heights(len(modules), delta.shape[0], delta.shape[1])
    if sum(sizes) != delta.shape[0] or min(sizes) <= 0:
        raise DataError(f"{delta.shape[0]} outputs cannot belong to {', '.join(layer.members)}", where=stem)
    result, start = {}, 0
    for module, size in zip(modules, sizes, strict=True):
        result[module] = delta.slice_outputs(start, start + size)
        start += size
    return result


def member_heights(count: int, height: int, width: int) -> list[int]:
    """Return the number of outputs of each member of a fused weight (height, width).

    Of three, the query has as many outputs as inputs where key and value have fewer (grouped queries); a
    fourth, the feed-forward layer, has the rest.
    """
    if count == 2:
        return [height // 2] * 2
    if count == 3:
        query = width if width < height else height // 3
        return [query, (height - query) // 2, (height - query) // 2]
    return [width, width, width, height - 3 * width]


def _reordered(delta: DeltaWeight, layer: Layer) -> DeltaWeight:
    """Return the delta of diffusers' module for a key with the native name, where the two halves are swapped.

    diffusers stores scale and shift of the last modulation in the other order, and of Stable Diffusion 3's
    last context stream, whose modulation has two outputs for each channel.
    """
    is_swapped = layer.is_native_spelling and len(layer.members) == 1 and _is_swapped(layer.members[0], delta)
    if not is_swapped:
        return delta
    half = delta.shape[0] // 2
    if isinstance(delta, LoraDelta):
        return LoraDelta(delta.down, delta.up.roll(half, 0), delta.scale)
    if isinstance(delta, DoraDelta) and isinstance(delta.direction, LoraDelta) and delta.is_per_output:
        direction = LoraDelta(delta.direction.down, delta.direction.up.roll(half, 0), delta.direction.scale)
        return DoraDelta(direction, delta.magnitude.roll(half, 0), delta.norm_of)
    return FullDelta(delta.dense().roll(half, 0))


def _is_swapped(module: str, delta: DeltaWeight) -> bool:
    last_context = module.endswith(".norm1_context.linear") and delta.shape[0] == 2 * delta.shape[1]
    return module == "norm_out.linear" or last_context

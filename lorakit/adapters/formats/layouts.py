"""Write changes as files spell them: dots with the scale multiplied in, or kohya's underscores and alphas.

Writers and readers (`spelling`, `names`) are independent of each other, so that reading a written file back
proves something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from lorakit.adapters.formats import consumers, native_names
from lorakit.adapters.formats.delta_weights import (
    DeltaWeight,
    DoraDelta,
    FullDelta,
    LohaDelta,
    LokrDelta,
    LoraDelta,
)
from lorakit.core.errors import ConfigError

Tensors = dict[str, torch.Tensor]
Changes = Mapping[str, DeltaWeight]


def write_diffusers(changes: Changes, family: str) -> Tensors:
    """`<component>.<module>.lora_A.weight` / `lora_B.weight`, scale multiplied into B."""
    tensors: Tensors = {}
    for module, change in changes.items():
        _write_dotted(tensors, module, change)
    return tensors


def write_native(changes: Changes, family: str) -> Tensors:
    """`diffusion_model.<the published network's module>`, layers fused as it has them."""
    tensors: Tensors = {}
    done: set[str] = set()
    for module, change in changes.items():
        component, path = module.split(".", 1)
        if component not in ("transformer", "unet"):
            _write_dotted(tensors, module, change)
            continue
        name, parts = native_names.native_module(family, path) or (path, [path])
        if name in done:
            continue
        done.add(name)
        together = {
            part: changes[f"{component}.{part}"] for part in parts if f"{component}.{part}" in changes
        }
        whole = native_names.reorder_modulation(name, parts[0], _fuse_deltas(together, parts, family))
        _write_dotted(tensors, f"diffusion_model.{name}", whole)
    return tensors


def _fuse_deltas(changes: Changes, parts: list[str], family: str) -> DeltaWeight:
    if len(parts) == 1:
        return next(iter(changes.values()))
    low = {part: change for part, change in changes.items() if isinstance(change, LoraDelta)}
    if len(low) < len(changes):
        raise ConfigError(
            "only LoRA goes into a fused layer", where=", ".join(sorted(changes.keys() - low.keys()))
        )
    return native_names.fuse_low_rank(low, parts, family in consumers.GROUPED_QUERY_FAMILIES, family)


def write_kohya(changes: Changes, family: str) -> Tensors:
    """`lora_unet_<module, underscores>.lora_down.weight` / `lora_up.weight` / `alpha`.

    One alpha for the whole file, for diffusers takes the first one for all; what remains goes into `lora_up`.
    """
    plain = [change for change in changes.values() if isinstance(_direction(change), LoraDelta)]
    first = _direction(plain[0]) if plain else None
    alpha = first.scale * first.rank if isinstance(first, LoraDelta) else None
    several = len(consumers.loader_rules(family)["diffusers"].texts) > 1
    prefixes = {"unet": "lora_unet", "transformer": "lora_unet", "text_encoder_2": "lora_te2"}
    prefixes["text_encoder"] = "lora_te1" if several else "lora_te"
    tensors: Tensors = {}
    for module, change in changes.items():
        component, path = module.split(".", 1)
        _write_kohya_module(tensors, f"{prefixes[component]}_{path.replace('.', '_')}", change, alpha)
    return tensors


def _direction(change: DeltaWeight) -> DeltaWeight:
    return change.inner if isinstance(change, DoraDelta) else change


def _write_kohya_module(tensors: Tensors, stem: str, change: DeltaWeight, alpha: float | None) -> None:
    if isinstance(change, DoraDelta):
        tensors[f"{stem}.dora_scale"] = change.magnitude.float()
        _write_kohya_module(tensors, stem, change.inner, alpha)
    elif isinstance(change, LoraDelta):
        # a file whose first module has no effect states an alpha of zero to nobody
        whole = alpha or float(change.rank)
        tensors[f"{stem}.lora_down.weight"] = change.down.float()
        tensors[f"{stem}.lora_up.weight"] = change.up.float() * (change.scale * change.rank / whole)
        tensors[f"{stem}.alpha"] = torch.tensor(whole, dtype=torch.float32)
    else:
        _write_factors(tensors, stem, change)


def _write_dotted(tensors: Tensors, stem: str, change: DeltaWeight) -> None:
    if isinstance(change, DoraDelta):
        if change.over == "base":
            tensors[f"{stem}.dora_scale"] = change.magnitude.float()
        else:
            flat = change.magnitude.float().flatten()  # peft's shape: (out,), or (1, out, 1, 1)
            kernel = len(change.shape) - 2
            name = f"{stem}.lora_magnitude_vector"
            # transformers takes peft's present name only, diffusers the one before
            name += ".weight" if stem.startswith("text_encoder") else ""
            tensors[name] = flat.reshape(1, -1, *[1] * kernel) if kernel else flat
        _write_dotted(tensors, stem, change.inner)
    elif isinstance(change, LoraDelta):
        tensors[f"{stem}.lora_A.weight"] = change.down.float()
        tensors[f"{stem}.lora_B.weight"] = change.up.float() * change.scale
    else:
        _write_factors(tensors, stem, change)


def _write_factors(tensors: Tensors, stem: str, change: DeltaWeight) -> None:
    """LoHa, LoKr and whole differences in LyCORIS' names, no alpha: the scale is multiplied in."""
    if isinstance(change, FullDelta):
        tensors[f"{stem}.diff"] = change.weight.float()
    elif isinstance(change, LohaDelta):
        for number, side in enumerate((change.one, change.two), 1):
            scale = side.scale * (change.scale if number == 1 else 1)
            tensors[f"{stem}.hada_w{number}_a"] = side.up.float() * scale
            tensors[f"{stem}.hada_w{number}_b"] = side.down.float()
    elif isinstance(change, LokrDelta):
        for number, factor in enumerate((change.one, change.two), 1):
            scale = change.scale if number == 1 else 1.0
            if isinstance(factor, LoraDelta):
                tensors[f"{stem}.lokr_w{number}_a"] = factor.up.float() * factor.scale * scale
                tensors[f"{stem}.lokr_w{number}_b"] = factor.down.float()
            else:
                tensors[f"{stem}.lokr_w{number}"] = factor.delta() * scale
    else:
        raise ConfigError(f"no layout spells a change of kind {change.kind}", where=stem)


def unshare_memory(tensors: Tensors) -> Tensors:
    """Tensors that share no memory, as the file format wants them: members of a fused layer have one A."""
    seen: set[int] = set()
    own: Tensors = {}
    for key, tensor in tensors.items():
        own[key] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return own


def is_supported_method(change: DeltaWeight, family: str, consumer: str) -> bool:
    """Whether a consumer reads this kind as it is, once its numbers are stated in the consumer's way."""
    if isinstance(change, DoraDelta):
        low, known = isinstance(change.inner, LoraDelta), change.by_output or consumer != "diffusers"
        return low and known and not consumers.divides_by_input_norm(family, consumer)
    if isinstance(change, LohaDelta):  # convolutions with a core have no names here
        return consumer != "diffusers" and all(side.down.ndim == 2 for side in (change.one, change.two))
    if isinstance(change, LokrDelta):
        flat = all(not isinstance(f, LoraDelta) or f.down.ndim == 2 for f in (change.one, change.two))
        return consumer != "diffusers" and flat
    return isinstance(change, LoraDelta) or (isinstance(change, FullDelta) and consumer != "diffusers")


Writer = Callable[[Changes, str], Tensors]
WRITERS: dict[str, Writer] = {"diffusers": write_diffusers, "native": write_native, "kohya": write_kohya}

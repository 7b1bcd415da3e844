"""Write delta weights in a layout: dotted keys with the scale multiplied in, or kohya's with alphas.

Writers share no code with the readers (`key_suffixes`, `module_names`), so that reading a written file back
verifies it.
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
from lorakit.adapters.formats.native_names import NativeModule
from lorakit.core.errors import ConfigError

Tensors = dict[str, torch.Tensor]
Deltas = Mapping[str, DeltaWeight]
"""Delta weights by `<component>.<module>`."""


def write_diffusers(deltas: Deltas, family: str) -> Tensors:
    """Write `<component>.<module>.lora_A.weight` and `lora_B.weight`, the scale multiplied into B."""
    tensors: Tensors = {}
    for module, delta in deltas.items():
        _write_dotted(tensors, module, delta)
    return tensors


def write_native(deltas: Deltas, family: str) -> Tensors:
    """Write `diffusion_model.<native module>`, with fused layers where the published network has them."""
    tensors: Tensors = {}
    for module, delta in _native_deltas(deltas, family, "native").items():
        component, path = module.split(".", 1)
        is_denoiser = component in ("transformer", "unet")
        _write_dotted(tensors, f"diffusion_model.{path}" if is_denoiser else module, delta)
    return tensors


def _single(family: str, component: str, path: str, layout: str) -> NativeModule:
    """Return a module that is not fused, with its published name; ConfigError if it has none."""
    name = consumers.native_path(family, component, path, layout)
    if name is None:
        raise ConfigError(
            f"the {layout} layout has no name for {path} of {family}",
            where=f"--to {layout}",
            remedy="use --to diffusers",
        )
    return NativeModule(name, [path])


def _native_deltas(deltas: Deltas, family: str, layout: str) -> dict[str, DeltaWeight]:
    """Return the deltas by `<component>.<native module>`, those of fused layers as one."""
    native_deltas: dict[str, DeltaWeight] = {}
    for module, delta in deltas.items():
        component, path = module.split(".", 1)
        if component not in ("transformer", "unet"):
            native_deltas[module] = delta
            continue
        native = native_names.native_module(family, path) or _single(family, component, path, layout)
        if f"{component}.{native.name}" in native_deltas:
            continue
        members = {
            member: deltas[f"{component}.{member}"]
            for member in native.members
            if f"{component}.{member}" in deltas
        }
        fused = _fuse_deltas(members, native.members, family)
        fused = native_names.reorder_modulation(native.name, native.members[0], fused)
        native_deltas[f"{component}.{native.name}"] = fused
    return native_deltas


def _fuse_deltas(deltas: Deltas, members: list[str], family: str) -> DeltaWeight:
    if len(members) == 1:
        return next(iter(deltas.values()))
    lora_deltas = {member: delta for member, delta in deltas.items() if isinstance(delta, LoraDelta)}
    if len(lora_deltas) < len(deltas):
        raise ConfigError(
            "only LoRA can be fused into one layer",
            where=", ".join(sorted(deltas.keys() - lora_deltas.keys())),
        )
    is_grouped_query = family in native_names.GROUPED_QUERY_FAMILIES
    return native_names.fuse_low_rank(lora_deltas, members, is_grouped_query, family)


def write_kohya(deltas: Deltas, family: str) -> Tensors:
    """Write `lora_unet_<module with underscores>.lora_down.weight`, `lora_up.weight` and `alpha`.

    Transformers get the modules of the published network, as sd-scripts and musubi-tuner name them. The whole
    file has one alpha, because diffusers uses the first one for all modules; the rest of each scale is
    multiplied into `lora_up`. Raises ConfigError for a transformer whose published names are not known.
    """
    directions = [_direction(delta) for delta in deltas.values()]
    first = next((delta for delta in directions if isinstance(delta, LoraDelta)), None)
    alpha = first.scale * first.rank if first else None
    prefixes = _kohya_prefixes(deltas, family)
    tensors: Tensors = {}
    for module, delta in _native_deltas(deltas, family, "kohya").items():
        component, path = module.split(".", 1)
        _write_kohya_module(tensors, f"{prefixes[component]}_{path.replace('.', '_')}", delta, alpha)
    return tensors


def _kohya_prefixes(deltas: Deltas, family: str) -> dict[str, str]:
    """Return the prefix of each component; ConfigError for a network without kohya's names."""
    is_transformer = any(module.startswith("transformer.") for module in deltas)
    if is_transformer and not native_names.has_native_names(family):
        raise ConfigError(
            f"kohya's layout has no names for {family}: neither sd-scripts nor musubi-tuner trains it",
            where="--to kohya",
            remedy="use --to diffusers",
        )
    return {"unet": "lora_unet", "transformer": "lora_unet"} | consumers.text_prefixes(family)


def _direction(delta: DeltaWeight) -> DeltaWeight:
    return delta.direction if isinstance(delta, DoraDelta) else delta


def _write_kohya_module(tensors: Tensors, stem: str, delta: DeltaWeight, alpha: float | None) -> None:
    if isinstance(delta, DoraDelta):
        tensors[f"{stem}.dora_scale"] = delta.magnitude.float()
        _write_kohya_module(tensors, stem, delta.direction, alpha)
    elif isinstance(delta, LoraDelta):
        # an alpha of zero, from a first module without effect, would disable all modules
        file_alpha = alpha or float(delta.rank)
        tensors[f"{stem}.lora_down.weight"] = delta.down.float()
        tensors[f"{stem}.lora_up.weight"] = delta.up.float() * (delta.scale * delta.rank / file_alpha)
        tensors[f"{stem}.alpha"] = torch.tensor(file_alpha, dtype=torch.float32)
    else:
        _write_factors(tensors, stem, delta)


def _write_dotted(tensors: Tensors, stem: str, delta: DeltaWeight) -> None:
    if isinstance(delta, DoraDelta):
        if delta.norm_of == "base":
            tensors[f"{stem}.dora_scale"] = delta.magnitude.float()
        else:
            flat = delta.magnitude.float().flatten()  # peft's shape: (out,), or (1, out, 1, 1)
            kernel = len(delta.shape) - 2
            name = f"{stem}.lora_magnitude_vector"
            # transformers reads only peft's current name, diffusers only the previous one
            name += ".weight" if stem.startswith("text_encoder") else ""
            tensors[name] = flat.reshape(1, -1, *[1] * kernel) if kernel else flat
        _write_dotted(tensors, stem, delta.direction)
    elif isinstance(delta, LoraDelta):
        tensors[f"{stem}.lora_A.weight"] = delta.down.float()
        tensors[f"{stem}.lora_B.weight"] = delta.up.float() * delta.scale
    else:
        _write_factors(tensors, stem, delta)


def _write_factors(tensors: Tensors, stem: str, delta: DeltaWeight) -> None:
    """Write LoHa, LoKr and dense differences with LyCORIS' names; the scale is multiplied in, no alpha."""
    if isinstance(delta, FullDelta):
        tensors[f"{stem}.diff"] = delta.weight.float()
    elif isinstance(delta, LohaDelta):
        for number, side in enumerate((delta.first, delta.second), 1):
            scale = side.scale * (delta.scale if number == 1 else 1)
            tensors[f"{stem}.hada_w{number}_a"] = side.up.float() * scale
            tensors[f"{stem}.hada_w{number}_b"] = side.down.float()
    elif isinstance(delta, LokrDelta):
        for number, factor in enumerate((delta.first, delta.second), 1):
            scale = delta.scale if number == 1 else 1.0
            if isinstance(factor, LoraDelta):
                tensors[f"{stem}.lokr_w{number}_a"] = factor.up.float() * factor.scale * scale
                tensors[f"{stem}.lokr_w{number}_b"] = factor.down.float()
            else:
                tensors[f"{stem}.lokr_w{number}"] = factor.dense() * scale
    else:
        raise ConfigError(
            f"no layout can store the delta weight of {delta.method}",
            where=stem,
            remedy="export it: it becomes the nearest LoRA",
        )


def unshare_memory(tensors: Tensors) -> Tensors:
    """Return tensors that share no memory, as safetensors requires: members of a fused layer share one A."""
    seen_pointers: set[int] = set()
    unshared: Tensors = {}
    for key, tensor in tensors.items():
        unshared[key] = tensor.clone() if tensor.data_ptr() in seen_pointers else tensor
        seen_pointers.add(tensor.data_ptr())
    return unshared


def add_new_shapes(tensors: Tensors, deltas: Deltas, family: str, layout: str) -> None:
    """Add `reshape_weight` for a first layer that the adapter widens, which ComfyUI then widens too."""
    rule = consumers.rule_for(family, "comfyui")
    if rule is None or rule.first_width is None:
        return
    path, width = rule.first_width
    for module, delta in deltas.items():
        stem = consumers.stem_in_layout(layout, family, module)
        if module == f"transformer.{path}" and delta.shape[1] != width and stem:
            tensors[f"{stem}.reshape_weight"] = torch.tensor(delta.shape[:2])


def is_supported_method(delta: DeltaWeight, family: str, consumer: str) -> bool:
    """Return True if a consumer reads this method without conversion to LoRA."""
    if isinstance(delta, DoraDelta):
        has_known_axis = delta.is_per_output or consumer != "diffusers"
        return (
            isinstance(delta.direction, LoraDelta)
            and has_known_axis
            and not consumers.divides_by_input_norm(family, consumer)
        )
    if isinstance(delta, LohaDelta):  # there are no names here for convolutions with a core tensor
        return consumer != "diffusers" and all(side.down.ndim == 2 for side in (delta.first, delta.second))
    if isinstance(delta, LokrDelta):
        is_flat = all(not isinstance(f, LoraDelta) or f.down.ndim == 2 for f in (delta.first, delta.second))
        return consumer != "diffusers" and is_flat
    return isinstance(delta, LoraDelta) or (isinstance(delta, FullDelta) and consumer != "diffusers")


Writer = Callable[[Deltas, str], Tensors]
WRITERS: dict[str, Writer] = {"diffusers": write_diffusers, "native": write_native, "kohya": write_kohya}

"""How files spell a LoRA: diffusers (dots, alpha multiplied in), kohya (underscores, an alpha for each pair).

Writers and readers are independent of each other, so that reading a written file back proves something.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from lorakit.errors import DataError

if TYPE_CHECKING:
    from lorakit.export.adapter_file import Change

Parts = dict[str, tuple[torch.Tensor, torch.Tensor, float | None]]
"""module -> (down, up, alpha where the file states it)"""

KOHYA_PREFIX = "lora_unet_"

# Names of the U-Net that contain an underscore themselves; every other underscore of a kohya key was a dot.
_COMPOUND = (
    "down_blocks|up_blocks|mid_block|transformer_blocks|to_q|to_k|to_v|to_out|proj_in|proj_out|conv_in|conv_out|"
    "conv_shortcut|time_emb_proj|time_embedding|linear_1|linear_2"
)
_WORD = re.compile(rf"(?:{_COMPOUND}|[a-z0-9]+)(?=_|$)")


def write_diffusers(changes: Mapping[str, Change], component: str) -> dict[str, torch.Tensor]:
    """`<component>.<module>.lora_A.weight` / `lora_B.weight`, alpha / rank multiplied into B."""
    tensors = {}
    for module, change in changes.items():
        tensors[f"{component}.{module}.lora_A.weight"] = change.down.float()
        tensors[f"{component}.{module}.lora_B.weight"] = change.up.float() * change.scale
    return tensors


def write_kohya(changes: Mapping[str, Change], component: str) -> dict[str, torch.Tensor]:
    """`lora_unet_<module, underscores>.lora_down.weight` / `lora_up.weight` / `alpha`.

    One alpha for the whole file, for diffusers takes the first one for all; what remains goes into `lora_up`.
    """
    first = next(iter(changes.values()))
    alpha = first.scale * first.rank
    tensors = {}
    for module, change in changes.items():
        key = KOHYA_PREFIX + module.replace(".", "_")
        rest = change.scale * change.rank / alpha
        tensors[f"{key}.lora_down.weight"] = change.down.float()
        tensors[f"{key}.lora_up.weight"] = change.up.float() * rest
        tensors[f"{key}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
    return tensors


def read_diffusers(tensors: Mapping[str, torch.Tensor], where: str) -> tuple[str, Parts]:
    """Component and parts of a file in diffusers' layout; every key must be understood."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(unet|transformer)\.(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise _unknown(key, where)
        found.setdefault(f"{match[1]} {match[2]}", {})[match[3]] = tensor
    components = {name.split(" ")[0] for name in found}
    if len(components) != 1:
        raise DataError("adapters of two networks in one file are not supported", where=where)
    component = components.pop()
    return component, {
        name.removeprefix(f"{component} "): (*_pair(pair, "A", "B", name, where), None)
        for name, pair in found.items()
    }


def read_kohya(tensors: Mapping[str, torch.Tensor], where: str) -> tuple[str, Parts]:
    """Component and parts of a file in kohya's layout; every key must be understood."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"{KOHYA_PREFIX}(\w+)\.(lora_down\.weight|lora_up\.weight|alpha)", key)
        if match is None:
            raise _unknown(key, where)
        found.setdefault(dotted(match[1]), {})[match[2].removesuffix(".weight")] = tensor
    parts: Parts = {}
    for module, pair in found.items():
        alpha = float(pair["alpha"]) if "alpha" in pair else None
        parts[module] = (*_pair(pair, "lora_down", "lora_up", module, where), alpha)
    return "unet", parts


def dotted(name: str) -> str:
    """`down_blocks_0_attentions_1_proj_in` -> `down_blocks.0.attentions.1.proj_in`."""
    return ".".join(_WORD.findall(name))


def recognise(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The layout of a file, told by its keys."""
    if any(key.startswith(KOHYA_PREFIX) for key in tensors):
        return "kohya"
    if any(".lora_A." in key for key in tensors):
        return "diffusers"
    return None


def _pair(
    pair: Mapping[str, torch.Tensor], down: str, up: str, module: str, where: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if down not in pair or up not in pair:
        raise DataError(f"only one half of the adapter of {module} is there", where=where)
    return pair[down], pair[up]


def _unknown(key: str, where: str) -> DataError:
    return DataError(f"a key that is not understood: {key}", where=where)


Writer = Callable[[Mapping[str, "Change"], str], dict[str, torch.Tensor]]
Reader = Callable[[Mapping[str, torch.Tensor], str], tuple[str, Parts]]
WRITERS: dict[str, Writer] = {"diffusers": write_diffusers, "kohya": write_kohya}
READERS: dict[str, Reader] = {"diffusers": read_diffusers, "kohya": read_kohya}

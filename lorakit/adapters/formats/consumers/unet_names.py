"""Module names of Stable Diffusion's U-Nets: the published (latent diffusion) names of diffusers' modules.

The published network numbers the blocks of all levels in one row: two resnets and a downsampler for each
level, and after the middle three resnets.
"""

from __future__ import annotations

import re
from functools import cache

_OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down_blocks\.(\d+)|up_blocks\.(\d+)|mid_block)\.(resnets|attentions)\.(\d+)\.(.+)")
_SAMPLER = re.compile(r"(down|up)_blocks\.(\d+)\.(?:downsamplers|upsamplers)\.0\.conv")
_LEVELS_WITHOUT_ATTENTION = {"sd15": (3,), "sdxl": (0,), "sdxl-refiner": (0, 3)}
"""Levels before the middle, by network."""
_LEVELS = {"sd15": 4, "sdxl": 3, "sdxl-refiner": 4}
_DEEPEST = 10  # transformer blocks of SDXL's largest attention


def ldm_module(module: str, network: str) -> str | None:
    """Return the published name of a module of diffusers' U-Net; None if there is none."""
    if module in _OUTER:
        return _OUTER[module]
    if match := _SAMPLER.fullmatch(module):
        level = int(match[2])
        if match[1] == "down":
            return f"input_blocks.{3 * level + 3}.0.op"
        return f"output_blocks.{3 * level + 2}.{2 if _has_attention_up(level, network) else 1}.conv"
    match = _BLOCK.fullmatch(module)
    if match is None:
        return None
    is_attention, layer = match[4] == "attentions", int(match[5])
    inner = match[6] if is_attention else _RESNET.get(match[6])
    if inner is None:
        return None
    if match[2] is not None:
        return f"input_blocks.{1 + 3 * int(match[2]) + layer}.{int(is_attention)}.{inner}"
    if match[3] is not None:
        return f"output_blocks.{3 * int(match[3]) + layer}.{int(is_attention)}.{inner}"
    return f"middle_block.{1 if is_attention else 2 * layer}.{inner}"


def _has_attention_up(level: int, network: str) -> bool:
    levels = _LEVELS.get(network, 4)
    return levels - 1 - level not in _LEVELS_WITHOUT_ATTENTION.get(network, ())


@cache
def modules(separator: str) -> dict[str, str]:
    """Return diffusers' modules of all U-Nets, by their name with this separator."""
    result = [*_OUTER]
    for way, sampler in (("down_blocks", "downsamplers"), ("up_blocks", "upsamplers")):
        for level in range(4):
            block = f"{way}.{level}"
            result.append(f"{block}.{sampler}.0.conv")
            result += [f"{block}.resnets.{layer}.{name}" for layer in range(3) for name in _RESNET]
            result += [
                f"{block}.attentions.{layer}.{name}" for layer in range(3) for name in _attention_layers()
            ]
    result += [f"mid_block.resnets.{layer}.{name}" for layer in range(2) for name in _RESNET]
    result += [f"mid_block.attentions.0.{name}" for name in _attention_layers()]
    return {module.replace(".", separator): module for module in result}


def _attention_layers() -> list[str]:
    blocks = [f"transformer_blocks.{number}" for number in range(_DEEPEST)]
    layers = [f"attn{n}.{name}" for n in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")]
    return [
        "proj_in",
        "proj_out",
        *(f"{block}.{name}" for block in blocks for name in (*layers, "ff.net.0.proj", "ff.net.2")),
    ]


@cache
def ldm_modules(separator: str) -> dict[str, str]:
    """Return diffusers' modules of all U-Nets, by their published name with this separator."""
    table = {}
    for network in _LEVELS:
        for module in modules(".").values():
            if name := ldm_module(module, network):
                table[name.replace(".", separator)] = module
    return table


@cache
def processor_modules(separator: str) -> dict[str, str]:
    """Return diffusers' modules of all U-Nets, by their name with the layers of attention in a processor."""
    table = {}
    for module in modules(".").values():
        name = module.replace(".to_", ".processor.to_")
        table[name.removesuffix(".0") if name.endswith(".to_out.0") else name] = module
    return table

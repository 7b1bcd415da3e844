"""Module names of Stable Diffusion's U-Nets: the published (latent diffusion) names of diffusers' modules.

The published network numbers the blocks of all levels in one row: two resnets and a downsampler for each
level, and after the middle three resnets.
"""

from __future__ import annotations

import re
from functools import cache

from lorakit.models.single_file.latent_diffusion import unet_name

_OUTER = (
    "conv_in",
    "time_embedding.linear_1",
    "time_embedding.linear_2",
    "add_embedding.linear_1",
    "add_embedding.linear_2",
    "conv_out",
)
_RESNET = ("conv1", "conv2", "time_emb_proj", "conv_shortcut")
_KNOWN = re.compile(
    rf"{'|'.join(map(re.escape, _OUTER))}|(down|up)_blocks\.\d+\.(downsamplers|upsamplers)\.0\.conv"
    rf"|((down|up)_blocks\.\d+|mid_block)\.(attentions\.\d+\..+|resnets\.\d+\.({'|'.join(_RESNET)}))"
)
_UP_BLOCKS = {
    "sd15": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "sdxl": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "sdxl-refiner": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
"""Types of the blocks behind the middle, by network."""
_OTHER_UP_BLOCKS = ["CrossAttnUpBlock2D"] * 4
_DEEPEST = 10  # transformer blocks of SDXL's largest attention


def ldm_module(module: str, network: str) -> str | None:
    """Return the published name of a module of diffusers' U-Net; None if there is none."""
    if not _KNOWN.fullmatch(module):
        return None
    config = {"up_block_types": _UP_BLOCKS.get(network, []) + _OTHER_UP_BLOCKS}
    return unet_name(f"{module}.weight", config).removesuffix(".weight")


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
    for network in _UP_BLOCKS:
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

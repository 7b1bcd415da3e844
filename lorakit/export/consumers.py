"""Which modules each consumer looks up, stated from its own tables.

ComfyUI only logs the keys it does not know, so an adapter with such keys would load in part and look right.
Each pattern lists the module names of one family that a consumer's lookup table has, and nothing more than
was checked (ComfyUI 0.12, diffusers 0.42; for A1111 the tables of Forge, which shares its names, as of June
2025).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lorakit.errors import ConfigError

NAMES = ("comfyui", "a1111", "diffusers")
LAYOUTS = {"sd15": "kohya", "sd3": "diffusers", "flux2": "diffusers"}

_UNET = (
    r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.("
    r"attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\."
    r"(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)))"
    r"|resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)"
    r"|(downsamplers|upsamplers)\.0\.conv)"
    r"|conv_in|conv_out|time_embedding\.linear_[12]"
)
_SD3 = (
    r"transformer_blocks\.\d+\.(attn2?\.(to_q|to_k|to_v|to_out\.0)|attn\.(add_[qkv]_proj|to_add_out)"
    r"|(ff|ff_context)\.net\.(0\.proj|2))"
)
_FLUX2 = (
    r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)

# No row means no layout that is known to load.
READS: dict[str, dict[str, str]] = {
    "sd15": {"comfyui": _UNET, "a1111": _UNET, "diffusers": _UNET},
    "sd3": {"comfyui": _SD3, "diffusers": r".+"},
    "flux2": {"comfyui": _FLUX2, "diffusers": r".+"},
}


def unread(family: str, consumer: str, modules: Iterable[str]) -> list[str]:
    """The modules of an adapter that a consumer would ignore."""
    pattern = READS.get(family, {}).get(consumer)
    return sorted(module for module in modules if pattern is None or not re.fullmatch(pattern, module))


def readers(family: str, modules: Iterable[str]) -> tuple[str, ...]:
    """The consumers that read every module of an adapter from the family's layout."""
    names = list(modules)
    return tuple(consumer for consumer in NAMES if not unread(family, consumer, names))


def check_consumer(family: str, consumer: str) -> None:
    """Refuse a consumer that reads no adapter of the family, before anything is trained."""
    if consumer not in READS.get(family, {}):
        raise refusal(family, consumer, (), "export")


def refusal(family: str, consumer: str, modules: Iterable[str], where: str) -> ConfigError:
    """Why a consumer is not served."""
    if family not in READS:
        return ConfigError(f"no export is known for the family {family!r}", where=where)
    if consumer not in READS[family]:
        return ConfigError(
            f"no layout of {family} adapters is known to load in {consumer}",
            where=where,
            remedy=f"known for {family}: {', '.join(READS[family])}",
        )
    ignored = unread(family, consumer, modules)
    return ConfigError(
        f"{consumer} would ignore {len(ignored)} modules, first {', '.join(ignored[:5])}",
        where=where,
        remedy="train the default targets (attention), or export for diffusers",
    )

"""Base models of the benchmarks: the embedded ones, and larger networks with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from lorakit.models import base_model

BASES = ("tiny-unet", "tiny-dit", "unet-34m", "dit-36m")
_LARGER: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "unet-34m": (
        "tiny-unet",
        "unet",
        "UNet2DConditionModel",
        {
            "block_out_channels": (64, 128, 256, 256),
            "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 128,
            "norm_num_groups": 32,
            "sample_size": 32,
        },
    ),
    "dit-36m": (
        "tiny-dit",
        "transformer",
        "SD3Transformer2DModel",
        {
            "num_layers": 7,
            "num_attention_heads": 12,
            "attention_head_dim": 32,
            "in_channels": 4,
            "out_channels": 4,
            "joint_attention_dim": 256,
            "caption_projection_dim": 384,
            "pooled_projection_dim": 256,
            "pos_embed_max_size": 32,
            "qk_norm": "rms_norm",
            "sample_size": 32,
        },
    ),
}
"""Embedded base whose other components are used, component, class, configuration."""


def make_base(name: str, folder: Path) -> Path | str:
    """Return the `base` of a recipe; builds a larger one in `folder` if it is not there yet."""
    if name not in _LARGER:
        return name
    import diffusers

    template, component, class_name, config = _LARGER[name]
    target = folder / name
    if not target.exists():
        shutil.copytree(
            base_model.EMBEDDED_FOLDER / template, target, ignore=shutil.ignore_patterns("lorakit.json")
        )
        shutil.rmtree(target / component)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = getattr(diffusers, class_name)(**config)
        network.save_pretrained(target / component)
    return target


def count_parameters(name: str, folder: Path) -> int:
    """Return the number of weights of a base's denoiser."""
    from safetensors import safe_open

    root = Path(base_model.resolve_base(str(make_base(name, folder))))
    component = "unet" if (root / "unet").exists() else "transformer"
    total = 0
    for file in (root / component).glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                total += torch.Size(tensors.get_slice(key).get_shape()).numel()
    return total

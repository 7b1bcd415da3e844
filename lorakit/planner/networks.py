"""Networks of a base model without weights, and an assumed count for those that do not run so."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from lorakit.core import safetensors_header
from lorakit.models.families.family import Family
from lorakit.models.memory.blocks import repeated_blocks
from lorakit.planner.meter import REST, PassCount, Work
from lorakit.planner.network_count import BlockCount, NetworkCount
from lorakit.planner.short_network import Shapes
from lorakit.planner.weights import WeightCount, count_weights

_SAVED_PER_FEATURE = 1.5  # activations that are kept, by inputs and outputs of the linear layers
_TRANSIENT_SHARE = 0.5


def build_denoiser(family: Family, base_folder: Path) -> nn.Module:
    """Build the denoiser of a base model on the meta device, as the family uses it."""
    pipe = family.load(base_folder, dtype=torch.float32, only={"scheduler"})
    for name in family.denoiser_components(base_folder):
        setattr(pipe, name, family.meta_network(base_folder, name))
    return family.denoiser(pipe)


def component_bytes(base_folder: Path, components: Iterable[str], itemsize: int) -> dict[str, int]:
    """Return the bytes of components with weights when a number has `itemsize` bytes, from their files."""
    sizes = {}
    for name in components:
        files = sorted((base_folder / name).glob("*.safetensors"))
        if files:
            sizes[name] = itemsize * sum(_numbers(file) for file in files)
    return sizes


def _numbers(file: Path) -> int:
    tensors = safetensors_header.read_header(file).tensors
    return sum(math.prod(entry["shape"]) for entry in tensors.values())


def activation_bound(base_folder: Path, components: Iterable[str], positions: int, itemsize: int) -> int:
    """Return more bytes than the activations of one image can take, from the shapes of all weights.

    `positions` are those of the latents: no layer sees more. It is quick, and many times too large.
    """
    features = 0
    for name in components:
        for file in sorted((base_folder / name).glob("*.safetensors")):
            for entry in safetensors_header.read_header(file).tensors.values():
                shape = entry["shape"]
                features += shape[0] + shape[1] if len(shape) > 1 else sum(shape)
    return 4 * positions * features * itemsize


def assumed_count(
    network: nn.Module,
    latent_shape: tuple[int, ...],
    patch_size: int,
    conditioning: Shapes,
    *,
    trained: int,
    itemsize: int,
    image: tuple[int, int] = (0, 0),
) -> NetworkCount:
    """Estimate the counts of a network whose code needs real numbers, from its layers and its tokens."""
    text = max((shape[0] for shape, _ in conditioning.values() if len(shape) > 1), default=0)
    tokens = math.prod(latent_shape[1:]) // patch_size**2 + text
    blocks = repeated_blocks(network)
    counted = []
    for block in blocks:
        layers = [m for m in block.module.modules() if isinstance(m, nn.Linear)]
        features = sum(layer.in_features + layer.out_features for layer in layers)
        products = 2.0 * tokens * sum(layer.in_features * layer.out_features for layer in layers)
        width = max((layer.in_features for layer in layers), default=0)
        saved = int(_SAVED_PER_FEATURE * tokens * features * itemsize)
        work = Work(linear=products, attention=4.0 * tokens**2 * width, moved_bytes=2.0 * saved, kernels=80)
        backward = Work(linear=products, attention=2.5 * work.attention, moved_bytes=3.0 * saved, kernels=120)
        peak = int(saved * (1 + _TRANSIENT_SHARE))
        passes = PassCount(work, backward, saved, tokens * width * itemsize, 0, peak, peak)
        counted.append(BlockCount(block.name, 1, count_weights(network, block.name), passes))
    whole = count_weights(network, "")
    rest = WeightCount(other=whole.total - sum(block.weights.total for block in counted))
    latents = math.prod(latent_shape) * 4
    passes = PassCount(Work(kernels=50), Work(kernels=50), 4 * latents, 0, 0, 8 * latents, 8 * latents)
    return NetworkCount(BlockCount(REST, 1, rest, passes), tuple(counted), trained, itemsize, image)

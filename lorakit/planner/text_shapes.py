"""Shapes of text embeddings without the weights of the text encoders.

The pipeline's own encoding runs with its tokenizers on text encoders that compute shapes only: their results
are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from lorakit.core.storage import read_json
from lorakit.models.families.family import Family
from lorakit.models.families.pipeline_folder import pipeline_components
from lorakit.models.families.published_models import model_of_family
from lorakit.planner.network_count import CountError
from lorakit.planner.short_network import Shapes

_WIDTH_KEYS = ("joint_attention_dim", "text_dim", "cross_attention_dim", "caption_channels")
"""Settings of denoisers that say how wide their text embeddings are."""


class _ShapesOnly(nn.Module):
    """A text encoder on the meta device, used like one on the CPU; all its results are zeros."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.__dict__["_network"] = network

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_network"], name)
        return _ShapesOnly(value) if isinstance(value, nn.Module) else value

    @property
    def device(self) -> torch.device:
        """The CPU, for tensors that are passed in."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the results."""
        return torch.float32

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros in the shapes of the network's results; no shape depends on a mask."""
        kwargs.pop("attention_mask", None)
        args, kwargs = tree_map(_to_meta, (args, kwargs))
        with torch.no_grad():
            return tree_map(_to_zeros, self.__dict__["_network"](*args, **kwargs))


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _to_zeros(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_meta:
        return torch.zeros(value.shape, dtype=value.dtype)
    return value


def text_shapes(family: Family, base_folder: Path, captions: Sequence[str], size: tuple[int, int]) -> Shapes:
    """Return the shapes of the longest caption's embeddings, without batch dimension.

    Raises CountError for a text encoder whose code needs real numbers, if the family has no published model.
    """
    longest = max(captions, key=len, default="")
    try:
        pipe = _pipeline_without_weights(family, base_folder)
        (cond,) = family.encode_text(pipe, [longest], size)
    except Exception as error:  # any model code runs here
        if model := model_of_family(family):
            return _with_width(model.shapes(), base_folder / family.components.denoiser)
        raise CountError(
            f"the text embeddings of {family.title} are not known yet: {error}",
            where=str(base_folder),
            remedy="encode the captions first: lorakit cache RECIPE",
        ) from error
    return {name: (tuple(value.shape), value.dtype) for name, value in cond.items()}


def _with_width(shapes: Shapes, denoiser: Path) -> Shapes:
    """Return the shapes of a published model's embeddings for a denoiser of another width."""
    config = read_json(denoiser / "config.json")
    width = next((config[key] for key in _WIDTH_KEYS if isinstance(config.get(key), int)), None)
    shape, kind = shapes["prompt_embeds"]
    return shapes if width is None else {**shapes, "prompt_embeds": ((*shape[:-1], width), kind)}


def _pipeline_without_weights(family: Family, base_folder: Path) -> Any:
    components = pipeline_components(base_folder)
    prefixes = family.text.component_prefixes
    names = [name for name in components if name.startswith(prefixes)]
    without_weights = {name for name in names if not components[name].has_weights}
    pipe = family.load(base_folder, dtype=torch.float32, only=without_weights)
    for name in names:
        if components[name].has_weights:
            setattr(pipe, name, _ShapesOnly(family.meta_network(base_folder, name).eval()))
    return pipe

"""Flux.1 Kontext: edits a picture by instruction; the source's tokens follow those of the noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.models.families.conditioned import ConditionedFamily
from lorakit.models.families.family import Conditioning, ConditioningTensors
from lorakit.models.families.flux1 import Flux1
from lorakit.models.families.packing import pack_latents, position_ids, unpack_latents

if TYPE_CHECKING:
    import torch


class Flux1Kontext(ConditionedFamily, Flux1):
    """Black Forest Labs 2025, https://arxiv.org/abs/2506.15742."""

    name = "flux1-kontext"
    title = "Flux.1 Kontext"
    pipelines = ("FluxKontextPipeline",)
    licence = "FLUX.1 non-commercial"
    takes = needs = ("source",)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        source, (height, width) = cond["source_latents"][:, 0], noisy.shape[2:]
        here = position_ids(1, height // 2, width // 2, device=noisy.device)
        there = position_ids(1, *(side // 2 for side in source.shape[2:]), device=noisy.device)
        places = torch.cat([here, there + there.new_tensor([1, 0, 0])])
        tokens = torch.cat([pack_latents(noisy), pack_latents(source)], dim=1)
        return unpack_latents(self._tokens(denoiser, tokens, places, t, cond)[:, : len(here)], height, width)

    def _show(self, pictures: ConditioningTensors, settings: Mapping[str, Any]) -> dict[str, Any]:
        # or the pipeline would draw a megapixel, and bring the source to one of its favourite sizes
        area = settings["width"] * settings["height"]
        return super()._show(pictures, settings) | {"max_area": area, "_auto_resize": False}

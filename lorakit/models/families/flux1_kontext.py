"""Flux.1 Kontext: edits an image by instruction; the source's tokens follow those of the noisy latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.models.families.conditioned import ConditionedFamily
from lorakit.models.families.family import Conditioning, ConditioningTensors
from lorakit.models.families.flux1 import Flux1
from lorakit.models.families.packing import pack_latents, position_ids, small_vector, unpack_latents
from lorakit.models.families.specs import ConditioningSpec

if TYPE_CHECKING:
    import torch


class Flux1Kontext(ConditionedFamily, Flux1):
    """Black Forest Labs 2025, https://arxiv.org/abs/2506.15742."""

    name = "flux1-kontext"
    title = "Flux.1 Kontext"
    pipelines = ("FluxKontextPipeline",)
    license = "FLUX.1 non-commercial"
    conditioning = ConditioningSpec(accepted=("source",), required=("source",))

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        source, (height, width) = cond["source_latents"][:, 0], noisy_latents.shape[2:]
        positions = position_ids(1, height // 2, width // 2, device=noisy_latents.device)
        source_positions = position_ids(
            1, *(side // 2 for side in source.shape[2:]), device=noisy_latents.device
        )
        source_positions = source_positions + small_vector([1, 0, 0], source_positions)
        tokens = torch.cat([pack_latents(noisy_latents), pack_latents(source)], dim=1)
        output = self._forward_tokens(
            denoiser, tokens, torch.cat([positions, source_positions]), timesteps, cond
        )
        return unpack_latents(output[:, : len(positions)], height, width)

    def _conditioning_arguments(
        self, images: ConditioningTensors, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        # otherwise the pipeline samples a megapixel and resizes the source to one of its preferred sizes
        area = settings["width"] * settings["height"]
        return super()._conditioning_arguments(images, settings) | {"max_area": area, "_auto_resize": False}

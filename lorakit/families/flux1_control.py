"""Flux.1 Canny and Depth: a control picture's latents are further channels of each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.families.base import Cond, Pictures
from lorakit.families.conditioned import Conditioned, opened
from lorakit.families.flux1 import Flux1
from lorakit.families.tokens import pack, positions, unpack

if TYPE_CHECKING:
    import torch


class Flux1Control(Conditioned, Flux1):
    """Black Forest Labs 2024, https://bfl.ai/flux-1-tools."""

    name = "flux1-control"
    title = "Flux.1 Canny / Depth"
    pipelines = ("FluxControlPipeline",)
    licence = "FLUX.1 non-commercial"
    takes = needs = ("control",)

    def predict(self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        import torch

        height, width = noisy.shape[2:]
        places = positions(1, height // 2, width // 2, device=noisy.device)
        tokens = pack(torch.cat([noisy, cond["control_latents"][:, 0]], dim=1))
        return unpack(self._tokens(denoiser, tokens, places, t, cond), height, width)

    def _show(self, pictures: Pictures, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"control_image": opened(pictures["control"])}

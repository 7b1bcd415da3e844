"""Flux.1 with a control image, whose latents are additional channels of each token.

Canny and Depth were published with a first layer of twice the width. On Flux.1 dev itself, a dataset with
control images trains a Control LoRA: the layer is widened with zeros, and an adapter of its own learns to use
the control; loaders recognize it by its width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.models.families import pipeline_folder as folders
from lorakit.models.families.conditioned import ConditionedFamily, first_pil_images
from lorakit.models.families.family import ATTENTION_TARGETS, Conditioning, ConditioningTensors
from lorakit.models.families.flux1 import Flux1
from lorakit.models.families.packing import pack_latents, position_ids, unpack_latents
from lorakit.models.families.pipeline_folder import NetworkLoader
from lorakit.models.families.specs import ConditioningSpec

if TYPE_CHECKING:
    import torch


class Flux1Control(ConditionedFamily, Flux1):
    """Black Forest Labs 2024, https://bfl.ai/flux-1-tools."""

    name = "flux1-control"
    title = "Flux.1 Canny / Depth / Control LoRA"
    pipelines = ("FluxControlPipeline",)
    license = "FLUX.1 non-commercial"
    rank16_parameters = "26.2 M"
    target_modules = [*ATTENTION_TARGETS, "x_embedder"]  # noqa: RUF012 - as in family.py
    conditioning = ConditioningSpec(
        accepted=("control",), required=("control",), converts_pipelines=("FluxPipeline",)
    )

    def load(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        only: Collection[str] | None = None,
        loaders: Mapping[str, NetworkLoader] | None = None,
    ) -> Any:
        """Load as `Family.load`; Flux.1 dev becomes the control pipeline, its first layer widened."""
        if folders.pipeline_name(Path(folder)) in self.pipelines:
            return super().load(folder, dtype=dtype, device=device, only=only, loaders=loaders)
        from diffusers import FluxControlPipeline

        base = Flux1().load(folder, dtype=dtype, only=only, loaders=loaders)
        names = FluxControlPipeline._get_signature_keys(FluxControlPipeline)[0]
        pipe = FluxControlPipeline(**{name: getattr(base, name) for name in names})
        pipe.lorakit_folder, pipe.lorakit_settings = base.lorakit_folder, base.lorakit_settings
        if pipe.transformer is not None:
            _widen(pipe.transformer)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)

    def meta_network(self, folder: str | Path, component: str) -> torch.nn.Module:
        network = super().meta_network(folder, component)
        if (
            component == self.components.denoiser
            and folders.pipeline_name(Path(folder)) not in self.pipelines
        ):
            _widen(network)
        return network

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        height, width = noisy_latents.shape[2:]
        positions = position_ids(1, height // 2, width // 2, device=noisy_latents.device)
        tokens = pack_latents(torch.cat([noisy_latents, cond["control_latents"][:, 0]], dim=1))
        return unpack_latents(
            self._forward_tokens(denoiser, tokens, positions, timesteps, cond), height, width
        )

    def _conditioning_arguments(
        self, images: ConditioningTensors, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"control_image": first_pil_images(images["control"])}


def _widen(transformer: Any) -> None:
    """Double the input channels of the first layer; the new ones have no effect yet."""
    import torch

    narrow = transformer.x_embedder
    wide = torch.nn.Linear(2 * narrow.in_features, narrow.out_features, device=narrow.weight.device)
    wide = wide.to(narrow.weight.dtype).requires_grad_(False)
    wide.weight.zero_()
    wide.weight[:, : narrow.in_features] = narrow.weight
    wide.bias.copy_(narrow.bias)
    transformer.x_embedder = wide
    transformer.register_to_config(in_channels=wide.in_features, out_channels=transformer.out_channels)

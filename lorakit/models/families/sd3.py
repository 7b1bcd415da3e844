"""Stable Diffusion 3 and 3.5: a joint text-image transformer trained with rectified flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import ComponentSpec, LatentSpec

if TYPE_CHECKING:
    import torch


class StableDiffusion3(Family):
    """Esser et al. 2024, https://arxiv.org/abs/2403.03206."""

    name = "sd3"
    title = "Stable Diffusion 3 / 3.5"
    pipelines = ("StableDiffusion3Pipeline",)
    rank16_parameters = "9.4 M (medium), 23.6 M (3.5 large)"
    license = "Stability AI Community"
    components = ComponentSpec(optional=("image_encoder", "feature_extractor"))
    latents = LatentSpec(patch_size=2)

    def _max_latent_side(self, pipe: Any) -> int:
        return (
            int(self._component_config(pipe, "transformer").config["pos_embed_max_size"])
            * self.latents.patch_size
        )

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _, pooled, _ = pipe.encode_prompt(
            captions,
            None,
            None,
            device=pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 256),
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}  # (1, L, D), (1, P)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        return denoiser(
            hidden_states=noisy_latents,
            timestep=timesteps,
            encoder_hidden_states=cond["prompt_embeds"],
            pooled_projections=cond["pooled_prompt_embeds"],
            return_dict=False,
        )[0]

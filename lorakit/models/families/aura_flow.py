"""AuraFlow: a joint transformer with a table of positions, conditioned on a T5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import NO_SHIFT, LatentSpec

if TYPE_CHECKING:
    import torch


class AuraFlow(Family):
    """Fal 2024, https://blog.fal.ai/auraflow."""

    name = "auraflow"
    title = "AuraFlow"
    pipelines = ("AuraFlowPipeline",)
    rank16_parameters = "15.7 M"
    license = "Apache-2.0"
    latents = LatentSpec(patch_size=2, vae_overrides=NO_SHIFT)

    def _max_latent_side(self, pipe: Any) -> int:
        # beyond its square table of positions the network would silently use wrong ones
        return (
            int(self._component_config(pipe, "transformer").config["pos_embed_max_size"] ** 0.5)
            * self.latents.patch_size
        )

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, mask, _, _ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            device=pipe.text_encoder.device,
            max_sequence_length=max_sequence_length(pipe, 256),
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}  # (1, 256, D); the mask is unused

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        return denoiser(
            noisy_latents,
            encoder_hidden_states=cond["prompt_embeds"],
            timestep=timesteps.to(noisy_latents.dtype) / 1000,
            return_dict=False,
        )[0]

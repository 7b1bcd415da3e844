"""CogView4: a joint transformer conditioned on the image's size and on GLM-4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning
from lorakit.models.families.packing import small_vector, unshift_timestep
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import NO_SHIFT, LatentSpec
from lorakit.models.families.unpadded import TEXT_MASK, UnpaddedTextFamily

if TYPE_CHECKING:
    import torch

PIXELS = 8  # per side of one latent, in the published VAE


class CogView4(UnpaddedTextFamily):
    """Zhipu 2025, https://huggingface.co/zai-org/CogView4-6B."""

    name = "cogview4"
    title = "CogView4"
    pipelines = ("CogView4Pipeline",)
    rank16_parameters = "14.7 M"
    license = "Apache-2.0"
    latents = LatentSpec(patch_size=2, scheduler_shift=False, vae_overrides=NO_SHIFT)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            device=pipe.text_encoder.device,
            max_sequence_length=max_sequence_length(pipe, 1024),
        )
        return {"prompt_embeds": embeds, TEXT_MASK: embeds.new_ones(embeds.shape[:2], dtype=bool)}

    def _predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        text = cond["prompt_embeds"]
        sides = [PIXELS * side for side in noisy_latents.shape[2:]]
        size = small_vector(sides, text).expand(len(noisy_latents), -1)
        return denoiser(
            hidden_states=noisy_latents,
            encoder_hidden_states=text,
            timestep=unshift_timestep(
                timesteps, noisy_latents.shape[2] * noisy_latents.shape[3] // self.latents.patch_size**2
            ),
            original_size=size,
            target_size=size,
            crop_coords=size * 0,
            return_dict=False,
        )[0]

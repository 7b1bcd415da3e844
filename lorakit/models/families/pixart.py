"""PixArt-Sigma: a small transformer that predicts noise, conditioned on T5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import NO_SHIFT, CallSpec, LatentSpec, TextSpec

if TYPE_CHECKING:
    import torch


class PixArtSigma(Family):
    """Chen et al. 2024, https://arxiv.org/abs/2403.04692."""

    name = "pixart-sigma"
    title = "PixArt-Sigma"
    pipelines = ("PixArtSigmaPipeline",)
    rank16_parameters = "8.3 M"
    license = "CreativeML Open RAIL++-M"
    text = TextSpec(masks={"prompt_attention_mask": ("prompt_embeds",)})
    call = CallSpec(extra_arguments={"use_resolution_binning": False, "negative_prompt": None})
    latents = LatentSpec(patch_size=2, vae_overrides=NO_SHIFT)
    objective = "ddpm"

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, mask, _, _ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            device=pipe.text_encoder.device,
            max_sequence_length=max_sequence_length(pipe, 300),
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}  # (1, 300, D), (1, 300)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            noisy_latents,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["prompt_attention_mask"],
            timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return prediction[:, : noisy_latents.shape[1]]  # the rest is a variance, which is not trained

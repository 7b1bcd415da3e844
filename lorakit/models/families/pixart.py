"""PixArt-Alpha and PixArt-Sigma: a small transformer that predicts noise, conditioned on T5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import small_vector
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import NO_SHIFT, CallSpec, LatentSpec, TextSpec

if TYPE_CHECKING:
    import torch

PIXELS = 8  # per side of one latent, in every published VAE of both models


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
    text_length: ClassVar[int] = 300
    """Tokens that captions are padded to, unless the base says otherwise."""

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, mask, _, _ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            device=pipe.text_encoder.device,
            max_sequence_length=max_sequence_length(pipe, self.text_length),
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}  # (1, L, D), (1, L)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            noisy_latents,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["prompt_attention_mask"],
            timestep=timesteps,
            added_cond_kwargs=self._size_conditions(denoiser, noisy_latents),
            return_dict=False,
        )[0]
        return prediction[:, : noisy_latents.shape[1]]  # the rest is a variance, which is not trained

    def _size_conditions(self, denoiser: Any, noisy_latents: torch.Tensor) -> dict[str, torch.Tensor | None]:
        return {"resolution": None, "aspect_ratio": None}


class PixArtAlpha(PixArtSigma):
    """Chen et al. 2023, https://arxiv.org/abs/2310.00426. The model for 1024 pixels gets the image's
    size, as in its pipeline."""

    name = "pixart-alpha"
    title = "PixArt-Alpha"
    pipelines = ("PixArtAlphaPipeline",)
    text_length = 120

    def _size_conditions(self, denoiser: Any, noisy_latents: torch.Tensor) -> dict[str, torch.Tensor | None]:
        if denoiser.config.sample_size != 128:
            return super()._size_conditions(denoiser, noisy_latents)
        height, width = noisy_latents.shape[2:]
        count = len(noisy_latents)
        return {
            "resolution": small_vector([PIXELS * height, PIXELS * width], noisy_latents).expand(count, -1),
            "aspect_ratio": small_vector([height / width], noisy_latents).expand(count, -1),
        }

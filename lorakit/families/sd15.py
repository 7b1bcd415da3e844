"""Stable Diffusion 1.x and 2.x: a U-Net that predicts noise (or v) from integer timesteps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.families.base import Cond, Family

if TYPE_CHECKING:
    import torch


class StableDiffusion15(Family):
    """Rombach et al. 2022, https://arxiv.org/abs/2112.10752."""

    name = "sd15"
    title = "Stable Diffusion 1.5 / 2.x"
    pipelines = ("StableDiffusionPipeline",)
    objective = "ddpm"
    component = "unet"
    # The checker blackens pictures it mistakes, which would spoil samples and scores.
    left_out = ("safety_checker", "feature_extractor", "image_encoder")

    def _settle(self, pipe: Any) -> None:
        # This pipeline decodes without the autoencoder's shift, so encoding must not apply it either.
        if pipe.vae is not None and pipe.vae.config.get("shift_factor"):
            pipe.vae.register_to_config(shift_factor=None)

    def _encode(self, pipe: Any, captions: list[str]) -> Cond:
        embeds, _ = pipe.encode_prompt(captions, pipe.text_encoder.device, 1, False)
        return {"prompt_embeds": embeds}  # (B, L, D)

    def predict(self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            noisy, t, encoder_hidden_states=cond["prompt_embeds"], return_dict=False
        )[0]
        return prediction

    def size_step(self, pipe: Any) -> int:
        """Latents must halve evenly at every level: other sizes make the U-Net interpolate its skips."""
        vae, unet = self._config(pipe, "vae")[1], self._config(pipe, "unet")[1]
        return int(2 ** (len(vae["block_out_channels"]) - 1 + len(unet["block_out_channels"]) - 1))

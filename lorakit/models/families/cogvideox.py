"""CogVideoX: a transformer over text and video in one sequence, trained to predict v."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lorakit.core.errors import ConfigError
from lorakit.models.families.family import Conditioning
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import LatentSpec
from lorakit.models.families.video import VideoFamily

if TYPE_CHECKING:
    import torch


class CogVideoX(VideoFamily):
    """Yang et al. 2024, https://arxiv.org/abs/2408.06072."""

    name = "cogvideox"
    title = "CogVideoX"
    pipelines = ("CogVideoXPipeline",)
    objective = "ddpm"
    rank16_parameters = "7.4 M"
    license = "Apache-2.0 (2B); CogVideoX (5B)"
    latents = LatentSpec(patch_size=2)
    fps = 8.0

    def _configure_pipeline(self, pipe: Any) -> None:
        super()._configure_pipeline(pipe)
        if self._component_config(pipe, "transformer").config.get("patch_size_t"):
            raise ConfigError(
                "CogVideoX 1.5 is not supported: it joins latents in pairs, and an image has only one",
                remedy="use CogVideoX-2b or CogVideoX-5b",
            )

    def frame_multiple(self, pipe: Any) -> int:
        # the VAE decodes two latents at once after the first, and would return too many frames
        return 2 * self.temporal_compression(pipe)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 226),
            device=pipe.text_encoder.device,
        )
        return {"prompt_embeds": embeds}  # (1, 226, D)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            hidden_states=self._pack_latents(noisy_latents),
            encoder_hidden_states=cond["prompt_embeds"],
            timestep=timesteps,
            image_rotary_emb=_rotary_embeddings(denoiser, noisy_latents),
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2)

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return noise.transpose(1, 2)  # (B, F, C, H, W)


def _rotary_embeddings(denoiser: Any, noisy_latents: torch.Tensor) -> Any:
    """Return the pipeline's rotary embeddings; None for the small model, which adds its own positions."""
    if not denoiser.config.use_rotary_positional_embeddings:
        return None
    from diffusers import CogVideoXPipeline

    frames, height, width = noisy_latents.shape[2:]
    pipe = SimpleNamespace(vae_scale_factor_spatial=1, transformer=denoiser)
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipe, height, width, frames, noisy_latents.device
    )

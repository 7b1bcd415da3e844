"""CogVideoX: a transformer of text and clip in one sequence, trained to predict v."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lorakit.core.errors import ConfigError
from lorakit.models.families.family import Conditioning
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.video import VideoFamily

if TYPE_CHECKING:
    import torch


class CogVideoX(VideoFamily):
    """Yang et al. 2024, https://arxiv.org/abs/2408.06072."""

    name = "cogvideox"
    title = "CogVideoX"
    pipelines = ("CogVideoXPipeline",)
    objective = "ddpm"
    rank16 = "7.4 M"
    licence = "Apache-2.0 (2B); CogVideoX (5B)"
    fps = 8.0
    patch = 2

    def _settle(self, pipe: Any) -> None:
        super()._settle(pipe)
        if self._config(pipe, "transformer")[1].get("patch_size_t"):
            raise ConfigError(
                "CogVideoX 1.5 joins latents of two frames, and a still or an odd number of them has none to"
                " join: it is not trained here",
                remedy="use CogVideoX-2b or CogVideoX-5b",
            )

    def frame_grid(self, pipe: Any) -> int:
        # the autoencoder works through two latents at once after the first, and would draw frames too many
        return 2 * self.frame_step(pipe)

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 226),
            device=pipe.text_encoder.device,
        )
        return {"prompt_embeds": embeds}  # (1, 226, D)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            hidden_states=self._pack(noisy),
            encoder_hidden_states=cond["prompt_embeds"],
            timestep=t,
            image_rotary_emb=_positions(denoiser, noisy),
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2)

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        return noise.transpose(1, 2)  # (B, F, C, H, W)


def _positions(denoiser: Any, noisy: torch.Tensor) -> Any:
    """The pipeline's own angles, or None for the small model, which adds its positions itself."""
    if not denoiser.config.use_rotary_positional_embeddings:
        return None
    from diffusers import CogVideoXPipeline

    frames, height, width = noisy.shape[2:]
    asking = SimpleNamespace(vae_scale_factor_spatial=1, transformer=denoiser)
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(
        asking, height, width, frames, noisy.device
    )

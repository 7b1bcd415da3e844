"""HunyuanVideo: a joint transformer of text and video, with guidance distilled into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import LatentSpec, TextSpec
from lorakit.models.families.video import VideoFamily

if TYPE_CHECKING:
    import torch


class HunyuanVideo(VideoFamily):
    """Kong et al. 2024, https://arxiv.org/abs/2412.03603."""

    name = "hunyuan-video"
    title = "HunyuanVideo"
    pipelines = ("HunyuanVideoPipeline",)
    rank16_parameters = "28.3 M"
    license = "Tencent Hunyuan community"
    text = TextSpec(masks={"prompt_attention_mask": ("prompt_embeds",)})
    latents = LatentSpec(patch_size=2)
    fps = 24.0

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, pooled, mask = pipe.encode_prompt(
            captions,
            device=pipe.text_encoder.device,
            max_sequence_length=max_sequence_length(pipe, 256),
        )
        return {
            "prompt_embeds": embeds,  # (1, 256, D)
            "pooled_prompt_embeds": pooled,  # (1, P)
            "prompt_attention_mask": mask,  # (1, 256)
        }

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        # guidance is distilled into it, times 1000, and 1 switches it off
        guidance = (
            noisy_latents.new_full((len(noisy_latents),), 1000.0) if denoiser.config.guidance_embeds else None
        )
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy_latents,
            timestep=timesteps,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["prompt_attention_mask"].to(noisy_latents.dtype),
            pooled_projections=cond["pooled_prompt_embeds"],
            guidance=guidance,
            return_dict=False,
        )[0]
        return prediction

    def _uses_negative(self, pipe: Any, scale: float) -> bool:
        return False  # guidance is an input of the network

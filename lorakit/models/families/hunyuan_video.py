"""HunyuanVideo: a joint transformer of text and clip, with guidance distilled into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.video import VideoFamily

if TYPE_CHECKING:
    import torch


class HunyuanVideo(VideoFamily):
    """Kong et al. 2024, https://arxiv.org/abs/2412.03603."""

    name = "hunyuan-video"
    title = "HunyuanVideo"
    pipelines = ("HunyuanVideoPipeline",)
    rank16 = "28.3 M"
    licence = "Tencent Hunyuan community"
    fps = 24.0
    patch = 2

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
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
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        # guidance is distilled into it, in thousandths, and 1 is none
        guidance = noisy.new_full((len(noisy),), 1000.0) if denoiser.config.guidance_embeds else None
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy,
            timestep=t,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["prompt_attention_mask"].to(noisy.dtype),
            pooled_projections=cond["pooled_prompt_embeds"],
            guidance=guidance,
            return_dict=False,
        )[0]
        return prediction

    def _wants_negative(self, pipe: Any, scale: float) -> bool:
        return False  # guidance is an input of the network

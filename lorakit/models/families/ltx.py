"""LTX-Video: a transformer over the tokens of strongly compressed videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning
from lorakit.models.families.packing import unpack_video_latents
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import TextSpec
from lorakit.models.families.video import VideoFamily

if TYPE_CHECKING:
    import torch


class LTX(VideoFamily):
    """HaCohen et al. 2025, https://arxiv.org/abs/2501.00103."""

    name = "ltx-video"
    title = "LTX-Video"
    pipelines = ("LTXPipeline",)
    rank16_parameters = "14.7 M"
    license = "LTX-Video open weights"
    text = TextSpec(masks={"prompt_attention_mask": ("prompt_embeds",)})
    fps = 25.0

    def denoiser(self, pipe: Any) -> torch.nn.Module:
        """Return the network, which positions tokens by their seconds and pixels."""
        network: Any = super().denoiser(pipe)
        if network is not None:
            side = self._spatial_compression(pipe)
            network.token_extent = (self.temporal_compression(pipe) / self.fps, side, side)
        return network

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, mask, *_ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 128),
            device=pipe.text_encoder.device,
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}  # (1, 128, D), (1, 128)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        frames, height, width = noisy_latents.shape[2:]
        prediction = denoiser(
            hidden_states=self._pack_latents(noisy_latents),
            encoder_hidden_states=cond["prompt_embeds"],
            timestep=timesteps,
            encoder_attention_mask=cond["prompt_attention_mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=denoiser.token_extent,
            return_dict=False,
        )[0]
        return unpack_video_latents(prediction, noisy_latents)

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return noise.flatten(2).transpose(1, 2)  # (B, F*H*W, C)

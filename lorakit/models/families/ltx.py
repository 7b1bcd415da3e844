"""LTX-Video: a transformer over the tokens of strongly compressed clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning
from lorakit.models.families.packing import unpack_video_latents
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.video import VideoFamily

if TYPE_CHECKING:
    import torch


class LTX(VideoFamily):
    """HaCohen et al. 2025, https://arxiv.org/abs/2501.00103."""

    name = "ltx-video"
    title = "LTX-Video"
    pipelines = ("LTXPipeline",)
    rank16 = "14.7 M"
    licence = "LTX-Video open weights"
    fps = 25.0

    def denoiser(self, pipe: Any) -> torch.nn.Module:
        """The network, which places tokens by the seconds and pixels that they stand for."""
        from lorakit.models import vae

        network: Any = super().denoiser(pipe)
        if network is not None:
            side = vae.spatial_compression(*self._config(pipe, "vae"))
            network.token_extent = (self.frame_step(pipe) / self.fps, side, side)
        return network

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, mask, *_ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 128),
            device=pipe.text_encoder.device,
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}  # (1, 128, D), (1, 128)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        frames, height, width = noisy.shape[2:]
        prediction = denoiser(
            hidden_states=self._pack(noisy),
            encoder_hidden_states=cond["prompt_embeds"],
            timestep=t,
            encoder_attention_mask=cond["prompt_attention_mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=denoiser.token_extent,
            return_dict=False,
        )[0]
        return unpack_video_latents(prediction, noisy)

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        return noise.flatten(2).transpose(1, 2)  # (B, F*H*W, C)

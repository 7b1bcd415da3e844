"""Z-Image and Z-Image-Turbo: a single-stream transformer over lists of captions and images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import CallSpec, LatentSpec

if TYPE_CHECKING:
    import torch


class ZImage(Family):
    """Tongyi-MAI 2025, https://arxiv.org/abs/2511.22699."""

    name = "z-image"
    title = "Z-Image / Turbo"
    pipelines = ("ZImagePipeline",)
    rank16_parameters = "16.7 M"
    license = "Apache-2.0"
    call = CallSpec(guidance_off=0.0)
    latents = LatentSpec(patch_size=2)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        length = max_sequence_length(pipe, 512)
        embeds, _ = pipe.encode_prompt(captions, pipe.text_encoder.device, False, max_sequence_length=length)
        return {
            "prompt_embeds": embeds[0][None],
            "text_mask": embeds[0].new_ones(1, len(embeds[0]), dtype=bool),
        }

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        predictions = denoiser(
            list(noisy_latents[:, :, None]),  # (C, 1, H, W) each
            (1000 - timesteps) / 1000,  # time and velocity run from noise to image
            self._text_arguments(None, cond)["prompt_embeds"],
            return_dict=False,
        )[0]
        return -torch.stack(predictions)[:, :, 0]

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        """Return captions as a list, without padding."""
        rows = zip(cond["prompt_embeds"], cond["text_mask"], strict=True)
        return {"prompt_embeds": [embeds[mask] for embeds, mask in rows]}

"""Stable Diffusion 3 and 3.5: a joint text-image transformer trained with rectified flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.pipeline_folder import max_sequence_length

if TYPE_CHECKING:
    import torch


class StableDiffusion3(Family):
    """Esser et al. 2024, https://arxiv.org/abs/2403.03206."""

    name = "sd3"
    title = "Stable Diffusion 3 / 3.5"
    pipelines = ("StableDiffusion3Pipeline",)
    left_out = ("image_encoder", "feature_extractor")
    rank16 = "9.4 M (medium), 23.6 M (3.5 large)"
    licence = "Stability AI Community"
    patch = 2

    def _largest(self, pipe: Any) -> int:
        return int(self._config(pipe, "transformer")[1]["pos_embed_max_size"]) * self.patch

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _, pooled, _ = pipe.encode_prompt(
            captions,
            None,
            None,
            device=pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 256),
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}  # (1, L, D), (1, P)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        return denoiser(
            hidden_states=noisy,
            timestep=t,
            encoder_hidden_states=cond["prompt_embeds"],
            pooled_projections=cond["pooled_prompt_embeds"],
            return_dict=False,
        )[0]

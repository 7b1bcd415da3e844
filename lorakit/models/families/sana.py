"""Sana: a linear-attention transformer on 32 times smaller latents, conditioned on Gemma 2."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import CallSpec, TextSpec

if TYPE_CHECKING:
    import torch


class Sana(Family):
    """Xie et al. 2024, https://arxiv.org/abs/2410.10629."""

    name = "sana"
    title = "Sana 1.0 / 1.5"
    pipelines = ("SanaPipeline",)
    rank16_parameters = "11.5 M (1.6B)"
    license = "NVIDIA (NSCL v2-custom, non-commercial)"
    text = TextSpec(masks={"prompt_attention_mask": ("prompt_embeds",)})
    call = CallSpec(extra_arguments={"use_resolution_binning": False, "negative_prompt": None})

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        # a caption follows a long instruction to the language model; the empty caption has none
        instruction = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
        embeds, mask, _, _ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            device=pipe.text_encoder.device,
            max_sequence_length=max_sequence_length(pipe, 300),
            complex_human_instruction=None if captions == [""] else instruction,
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}  # (1, 300, D), (1, 300)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            noisy_latents,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["prompt_attention_mask"],
            timestep=timesteps * denoiser.config.timestep_scale,
            return_dict=False,
        )[0]
        return prediction[:, : noisy_latents.shape[1]]  # some base models predict a variance too

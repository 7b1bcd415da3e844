"""AuraFlow: a joint transformer with a table of positions, conditioned on a T5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import NO_SHIFT, Conditioning, Family
from lorakit.models.families.pipeline_folder import max_sequence_length

if TYPE_CHECKING:
    import torch


class AuraFlow(Family):
    """Fal 2024, https://blog.fal.ai/auraflow."""

    name = "auraflow"
    title = "AuraFlow"
    pipelines = ("AuraFlowPipeline",)
    rank16 = "15.7 M"
    licence = "Apache-2.0"
    patch = 2
    vae_settings = NO_SHIFT

    def _largest(self, pipe: Any) -> int:
        # beyond its square table of positions the network would silently take wrong ones
        return int(self._config(pipe, "transformer")[1]["pos_embed_max_size"] ** 0.5) * self.patch

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, mask, _, _ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            device=pipe.text_encoder.device,
            max_sequence_length=max_sequence_length(pipe, 256),
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}  # (1, 256, D), unused but asked for

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        return denoiser(
            noisy,
            encoder_hidden_states=cond["prompt_embeds"],
            timestep=t.to(noisy.dtype) / 1000,
            return_dict=False,
        )[0]

"""ERNIE-Image: one stream of text and image on Flux.2's latents, conditioned on Mistral 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.specs import CallSpec, ComponentSpec, LatentSpec

if TYPE_CHECKING:
    import torch


class ErnieImage(Family):
    """Baidu 2026, https://huggingface.co/baidu/ERNIE-Image."""

    name = "ernie-image"
    title = "ERNIE-Image"
    pipelines = ("ErnieImagePipeline",)
    rank16_parameters = "18.9 M"
    license = "Apache-2.0"
    # `pe` is a language model that rewrites captions
    components = ComponentSpec(optional=("pe", "pe_tokenizer"))
    call = CallSpec(extra_arguments={"use_pe": False})
    # the pipeline has this number in its code
    latents = LatentSpec(vae_overrides={"batch_norm_eps": 1e-5})

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        (hidden,) = pipe.encode_prompt(captions, pipe.text_encoder.device)
        return {"prompt_embeds": hidden[None], "text_mask": hidden.new_ones(1, len(hidden), dtype=bool)}

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        return denoiser(
            hidden_states=noisy_latents,
            timestep=timesteps.to(noisy_latents.dtype),
            text_bth=cond["prompt_embeds"],
            text_lens=cond["text_mask"].sum(1),
            return_dict=False,
        )[0]

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        rows = zip(cond["prompt_embeds"], cond["text_mask"], strict=True)
        return {"prompt_embeds": [embeds[mask] for embeds, mask in rows]}

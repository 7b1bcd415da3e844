"""ERNIE-Image: one stream of text and picture on Flux.2's latents, conditioned on Mistral 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.family import Conditioning, Family

if TYPE_CHECKING:
    import torch


class ErnieImage(Family):
    """Baidu 2026, https://huggingface.co/baidu/ERNIE-Image."""

    name = "ernie-image"
    title = "ERNIE-Image"
    pipelines = ("ErnieImagePipeline",)
    rank16 = "9.4 M"
    licence = "Apache-2.0"
    left_out = ("pe", "pe_tokenizer")  # a language model that rewrites captions
    call: ClassVar = {"use_pe": False}
    vae_settings: ClassVar = {"batch_norm_eps": 1e-5}  # written out in the pipeline

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        (hidden,) = pipe.encode_prompt(captions, pipe.text_encoder.device)
        return {"prompt_embeds": hidden[None], "text_mask": hidden.new_ones(1, len(hidden), dtype=bool)}

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        return denoiser(
            hidden_states=noisy,
            timestep=t.to(noisy.dtype),
            text_bth=cond["prompt_embeds"],
            text_lens=cond["text_mask"].sum(1),
            return_dict=False,
        )[0]

    def _arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        rows = zip(cond["prompt_embeds"], cond["text_mask"], strict=True)
        return {"prompt_embeds": [embeds[mask] for embeds, mask in rows]}

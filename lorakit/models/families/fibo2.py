"""Bria FIBO 2: a transformer on Flux.2's latents, conditioned on six selections of Qwen3-VL's layers."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family

if TYPE_CHECKING:
    import torch


class Fibo2(Family):
    """Bria 2026, https://huggingface.co/briaai/Fibo-2.0-dev. Captions are JSON, as the model was trained on.

    The pipeline can pass images of words to the text encoder; this is not supported.
    """

    name = "fibo2"
    title = "Bria FIBO 2"
    pipelines = ("BriaFibo2Pipeline",)
    rank16_parameters = "26.1 M"
    license = "see the model's page"

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt([_clean_caption(pipe, captions[0])], device=pipe.text_encoder.device)
        embeds = embeds.transpose(1, 2)  # (1, L, 6, D)
        return {"prompt_embeds": embeds, "prompt_embeds_mask": embeds.new_ones(embeds.shape[:2], dtype=bool)}

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        from torch.nn.functional import pixel_shuffle, pixel_unshuffle

        prediction = denoiser(
            hidden_states=pixel_shuffle(noisy_latents, 2),
            timestep=timesteps / 1000,
            encoder_hidden_states=cond["prompt_embeds"].transpose(1, 2),
            encoder_attention_mask=cond["prompt_embeds_mask"],
            return_dict=False,
        )[0]
        return pixel_unshuffle(prediction, 2)

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        return cond | {"prompt_embeds": cond["prompt_embeds"].transpose(1, 2)}

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import pixel_shuffle

        return pixel_shuffle(noise, 2)


def _clean_caption(pipe: Any, caption: str) -> str:
    """Clean a JSON caption as the pipeline does; the empty one becomes the null caption of training."""
    if not caption:
        module = inspect.getmodule(type(pipe))
        return str(module.DEFAULT_NEGATIVE_PROMPT)  # type: ignore[union-attr]
    parsed, _ = pipe._parse_prompt(caption)
    if isinstance(parsed, str):
        return caption
    return json.dumps(parsed or {}, separators=(",", ":"), ensure_ascii=False)
